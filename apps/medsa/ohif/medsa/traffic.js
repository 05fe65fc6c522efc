// The MONAI Label panel's requests for masks: what it leaves out is added, and who answered is read from the answer.
import { detailOf } from './server.js';

const MODEL = /^\/infer\/([^/]+)$/;

let handlers = null;
let watched = false;
const running = new Set();

/**
 * From now on `complete(model, params)` gives what every request for a mask says, {params, mask}: a `mask` is the
 * promise of a label file to go with it. `started()` and `answered({ok, text, base, version, seconds, model, params, body})`
 * are called around it. The panel keeps its client to itself, so the browser's own is watched.
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
    const mask = handlers && this.medsaModel && body instanceof FormData ? follow(this, body, handlers) : null;
    if (!mask) {
      return send.call(this, body);
    }
    mask.then(file => {
      body.set('label', file, 'label.bin.gz');
      if (running.has(this)) { // a case that was left meanwhile asks for nothing any more
        send.call(this, body);
      }
    });
  };
}

/** Nothing is added or told any more. What runs is ended: its mask would be painted into whatever is opened next. */
export function ignoreTraffic() {
  handlers = null;
  running.forEach(request => request.abort());
  running.clear();
}

function follow(request, form, own) {
  const model = decodeURIComponent(request.medsaModel);
  const { params, mask } = own.complete(model, JSON.parse(form.get('params') ?? '{}'));
  form.set('params', JSON.stringify(params));
  running.add(request);
  own.started();
  request.addEventListener('loadend', () => {
    running.delete(request);
    own.answered({ model, params, ...described(request) });
  });
  return mask;
}

function described(request) {
  if (request.status !== 200) {
    const body = new TextDecoder().decode(request.response ?? new ArrayBuffer());
    return { ok: false, text: request.status ? detailOf(body, request.status) : 'The server cannot be reached.' };
  }
  const [base, version, seconds] = ['base', 'version', 'seconds'].map(name => request.getResponseHeader(`medsa-${name}`));
  return { ok: true, base, version: Number(version), seconds: Number(seconds), body: request.response };
}
