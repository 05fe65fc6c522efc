// The MONAI Label panel's requests for masks: what it leaves out is added, and who answered is read from the answer.
import { detailOf } from './server.js';

const MODEL = /^\/infer\/([^/]+)$/;

let handlers = null;
let watched = false;
const running = new Set();

/**
 * From now on `complete(model, params)` gives the params of every request for a mask, and `started()` and
 * `answered({ok, text, base, version, seconds})` are called around it. The panel keeps its client to itself, so the
 * browser's own is watched.
 */
export function watchTraffic(added) {
  handlers = added;
  if (watched) {
    return;
  }
  watched = true;
  const { open, send } = XMLHttpRequest.prototype;
  XMLHttpRequest.prototype.open = function (method, url, ...rest) {
    const target = new URL(url, location.href);
    this.medsaModel = target.origin === location.origin ? MODEL.exec(target.pathname)?.[1] : undefined;
    return open.call(this, method, url, ...rest);
  };
  XMLHttpRequest.prototype.send = function (body) {
    if (handlers && this.medsaModel && body instanceof FormData) {
      follow(this, body, handlers);
    }
    return send.call(this, body);
  };
}

/** Nothing is added or told any more. What runs is ended: its mask would be painted into whatever is opened next. */
export function ignoreTraffic() {
  handlers = null;
  running.forEach(request => request.abort());
  running.clear();
}

function follow(request, form, own) {
  const params = JSON.parse(form.get('params') ?? '{}');
  form.set('params', JSON.stringify(own.complete(decodeURIComponent(request.medsaModel), params)));
  running.add(request);
  own.started();
  request.addEventListener('loadend', () => {
    running.delete(request);
    own.answered(described(request));
  });
}

function described(request) {
  if (request.status !== 200) {
    const body = new TextDecoder().decode(request.response ?? new ArrayBuffer());
    return { ok: false, text: request.status ? detailOf(body, request.status) : 'The server cannot be reached.' };
  }
  const [base, version, seconds] = ['base', 'version', 'seconds'].map(name => request.getResponseHeader(`medsa-${name}`));
  return { ok: true, base, version: Number(version), seconds: Number(seconds) };
}
