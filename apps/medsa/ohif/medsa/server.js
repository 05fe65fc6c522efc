// What the dock asks of the medsa server.

const STATUS_PATIENCE_MS = 10_000;
// What a case is opened with: without it the page would stay as it is, however long one waits.
const OPENING_PATIENCE_MS = 120_000;
const SAVE_PATIENCE_MS = 180_000;

/** An answer that is none; its message is the server's own. */
export class ServerError extends Error {}

export const status = () => getJson('/medsa/status');
export const info = () => getJson('/info/', OPENING_PATIENCE_MS);
export const savedLabels = image => getJson(`/medsa/cases/${encodeURIComponent(image)}`, OPENING_PATIENCE_MS);

/** Tells the server that a case is open. */
export const open = image => getJson(`/datastore/image/info?image=${encodeURIComponent(image)}`);

/** The current label: its version, and its voxels, uint8 with i fastest and the values of /info/. Null for none. */
export async function currentLabel(image) {
  const answer = await fetch(`/medsa/cases/${encodeURIComponent(image)}/label`);
  if (answer.status === 404) {
    return null;
  }
  const { headers } = await checked(answer);
  return { version: Number(headers.get('medsa-label-version')), voxels: new Uint8Array(await answer.arrayBuffer()) };
}

/** The case that the strategy has chosen for `client`; an empty object when none is left. */
export async function nextCase(client) {
  const body = JSON.stringify({ client_id: client });
  const headers = { 'content-type': 'application/json' };
  return (await checked(await fetch('/activelearning/medsa', { method: 'POST', body, headers }))).json();
}

/** Takes back that `client` was offered a case: others may have it, and the client gets another one. */
export async function giveBack(image, client) {
  const body = JSON.stringify({ client_id: client });
  const headers = { 'content-type': 'application/json' };
  await checked(await fetch(`/medsa/cases/${encodeURIComponent(image)}/give-back`, { method: 'POST', body, headers }));
}

/** Saves a label; `onProgress` is told the part that is sent, 0 to 1. What the server says of it. */
export async function saveLabel(image, voxels, params, onProgress) {
  const form = new FormData();
  form.append('params', JSON.stringify(params));
  form.append('label', await gzip(voxels), 'label.bin.gz');
  return new Promise((resolve, reject) => {
    // fetch cannot tell how much is sent.
    const request = new XMLHttpRequest();
    request.open('PUT', `/datastore/label?image=${encodeURIComponent(image)}`);
    request.upload.onprogress = event => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onerror = () => reject(new ServerError('the server cannot be reached; the label is still here, try again'));
    request.ontimeout = () => reject(new ServerError('the server does not answer; the label is still here, try again'));
    request.onload = () => {
      try {
        if (request.status !== 200) {
          throw new ServerError(detailOf(request.responseText, request.status));
        }
        resolve(JSON.parse(request.responseText));
      } catch (error) {
        reject(error);
      }
    };
    request.timeout = SAVE_PATIENCE_MS;
    request.send(form);
  });
}

/** The text of an error in an answer's body. */
export function detailOf(body, code) {
  try {
    const { detail } = JSON.parse(body);
    return typeof detail === 'string' ? detail : JSON.stringify(detail);
  } catch {
    return `the server answered ${code}`;
  }
}

async function getJson(path, patience = STATUS_PATIENCE_MS) {
  return (await checked(await fetch(path, { signal: AbortSignal.timeout(patience) }))).json();
}

async function checked(answer) {
  if (!answer.ok) {
    throw new ServerError(detailOf(await answer.text(), answer.status));
  }
  return answer;
}

/** Masks are mostly zeros: a hundredth of the bytes goes over the wire. */
export async function gzip(voxels) {
  return new Response(new Blob([voxels]).stream().pipeThrough(new CompressionStream('gzip'))).blob();
}
