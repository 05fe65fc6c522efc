// The MONAI Label panel's requests for masks: what it leaves out is added, and who answered is read from the answer.
import { detailOf } from './server.js';

const MODEL = /^\/infer\/([^/]+)$/;

let handlers = null;
let watched = false;

/**
 * From now on `add(model)` is put into every request for a mask, `started()` and `answered({ok, text, base, version,
 * seconds})` are called around it. The panel keeps its client to itself, so the browser's own is watched.
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
      complete(body, handlers.add(decodeURIComponent(this.medsaModel)));
      handlers.started();
      this.addEventListener('loadend', () => handlers?.answered(described(this)));
    }
    return send.call(this, body);
  };
}

/** Nothing is added or told any more. */
export function ignoreTraffic() {
  handlers = null;
}

function complete(form, added) {
  const params = JSON.parse(form.get('params') ?? '{}');
  form.set('params', JSON.stringify({ ...added, ...params }));
}

function described(request) {
  if (request.status !== 200) {
    const text = request.status ? detailOf(new TextDecoder().decode(request.response ?? new ArrayBuffer()), request.status) : 'the server cannot be reached';
    return { ok: false, text };
  }
  const [base, version, seconds] = ['medsa-base', 'medsa-version', 'medsa-seconds'].map(name => request.getResponseHeader(name));
  return { ok: true, base, version: Number(version), seconds: Number(seconds) };
}
