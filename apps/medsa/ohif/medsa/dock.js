// The dock on top of the MONAI Label panel: what would be submitted, Submit label, Next sample, and how training goes.
import { Corrections } from './corrections.js';
import { contents, imageIsLoaded, numberOf, openSeries, packed, put, show, voxels } from './labels.js';
import { chosenLabel, connect, isNextSample, isPrompt, keepRow, noteRow, pressedRun, run } from './panel.js';
import { currentLabel, giveBack, info, nextCase, open, savedLabels, saveLabel, status } from './server.js';
import { ignoreTraffic, watchTraffic } from './traffic.js';

const POLL_MS = 3000;
const PATIENCE_MS = 180_000;
const SERIES_MS = 500;
const COUNT_MS = 400; // counting 25 million voxels takes a tenth of a second: not with every dab of a brush
const NAME_KEY = 'medsa-name';
const CLIENT_KEY = 'medsa-client';
const EVERY_CLICK_KEY = 'medsa-every-click';
const OFFER_KEY = 'medsa-offer'; // {image, text} of the case that was offered last, in this tab
const LEAVE = 'What you changed is not submitted, and would be lost. Go on?';

let dock = null; // the open dock, one a page

/** Puts the dock into the panel, and has the panel connected. */
export function openDock({ servicesManager, commandsManager }) {
  closeDock();
  dock = new Dock(servicesManager.services, commandsManager);
  window.medsa = dock;
}

/** Takes it away. */
export function closeDock() {
  dock?.close();
  dock = null;
}

class Dock {
  constructor(services, commandsManager) {
    this.services = services;
    this.commandsManager = commandsManager;
    this.labels = {}; // name -> value, of the task
    this.deepgrow = new Map(); // models that are not told which label is meant -> dimension of what they answer
    this.corrections = new Corrections();
    this.image = null;
    this.seen = 0; // newest version of this case that is known here
    this.changed = false; // since it was opened or submitted
    this.sending = false;
    this.before = null; // what was shown before the last answer
    this.outside = new Map(); // click on the background -> the label that it was made for
    this.answers = 0;
    this.asking = 0;
    this.clicked = false; // while the model was busy
    this.waiting = [];
    this.ended = new AbortController();
    this.view = view();
    this.listen();
    this.begin().catch(error => this.say(error.message, 'error'));
  }

  close() {
    this.ended.abort();
    ignoreTraffic();
    this.view.root.remove();
  }

  listen() {
    const { signal } = this.ended;
    const { submit, next, skip, load, undo, everyClick, name } = this.view;
    submit.addEventListener('click', () => this.guarded(() => this.submit()));
    next.addEventListener('click', () => this.guarded(() => this.next()));
    skip.addEventListener('click', () => this.guarded(() => this.skip()));
    load.addEventListener('click', () => this.guarded(() => this.mayLeave() && this.load()));
    undo.addEventListener('click', () => this.undo());
    everyClick.addEventListener('change', () => localStorage.setItem(EVERY_CLICK_KEY, everyClick.checked));
    name.addEventListener('change', () => localStorage.setItem(NAME_KEY, name.value.trim()));
    document.addEventListener('click', event => noteRow(event, this.commandsManager), { signal, capture: true });
    document.addEventListener('click', keepRow, { signal });
    document.addEventListener('change', keepRow, { signal });
    document.addEventListener('click', event => this.replacePress(event), { signal, capture: true });
    window.addEventListener('beforeunload', event => this.hasWork() && event.preventDefault(), { signal });
    window.addEventListener('popstate', event => this.holdBack(event), { signal, capture: true });
    watchTraffic({
      complete: (model, params) => this.completed(model, params),
      started: () => this.noteStart(),
      answered: answer => this.answered(answer),
    });
    // The panel is drawn, and drawn anew, by React: the dock is put back wherever that leaves it out.
    const place = new MutationObserver(() => this.place());
    place.observe(document.body, { childList: true, subtree: true });
    signal.addEventListener('abort', () => place.disconnect());
  }

  place() {
    const panel = document.querySelector('.monaiLabelPanel');
    if (panel && this.view.root.parentElement !== panel) {
      panel.prepend(this.view.root);
    }
  }

  async begin() {
    this.poll();
    const about = await info();
    this.labels = about.models.medsa.labels;
    const deepgrow = Object.entries(about.models).filter(([, { type }]) => type === 'deepgrow');
    this.deepgrow = new Map(deepgrow.map(([model, { dimension }]) => [model, dimension]));
    await this.until(imageIsLoaded);
    await connect(condition => this.until(condition), () => voxels(this.services));
    this.watchVolume();
    await this.openCase(openSeries(this.services).series);
    this.watchSeries();
  }

  /**
   * The panel has one segmentation, made for the series that was opened: with another one on the screen its masks would
   * be saved as labels of the first. Another series is opened by its own address.
   */
  watchSeries() {
    let shown = this.image;
    const timer = setInterval(() => {
      const found = openSeries(this.services);
      if (!found || found.series === shown) {
        return;
      }
      shown = found.series; // asked about once
      if (shown !== this.image && this.mayLeave()) {
        clearInterval(timer);
        this.go(found.study, found.series);
      }
    }, SERIES_MS);
    this.ended.signal.addEventListener('abort', () => clearInterval(timer));
  }

  /** Throws while another series is shown than the one whose label this is. */
  checkSeries() {
    const found = openSeries(this.services);
    if (!found || found.series !== this.image) {
      throw new Error('Another series is shown than the one that is annotated; open that one first.');
    }
  }

  /** Whether nothing would be lost, or a person says that it may be. */
  mayLeave() {
    return !this.hasWork() || window.confirm(LEAVE);
  }

  /** Whether something would be lost. The viewer tells of changes, too, when it has made an empty segmentation. */
  hasWork() {
    return this.sending || (this.changed && (this.seen > 0 || this.count().length > 0));
  }

  go(study, series) {
    this.changed = false;
    location.assign(`/ohif/monai-label?StudyInstanceUIDs=${study}&SeriesInstanceUIDs=${series}`);
  }

  /** The way back in the browser leaves the case without loading a page. */
  holdBack(event) {
    if (!this.mayLeave()) {
      event.stopImmediatePropagation();
      history.forward();
    }
  }

  watchVolume() {
    const { signal } = this.ended;
    const { Events } = window.cornerstoneTools.Enums;
    const on = (name, listener) => {
      window.cornerstone.eventTarget.addEventListener(name, listener);
      signal.addEventListener('abort', () => window.cornerstone.eventTarget.removeEventListener(name, listener));
    };
    on(Events.SEGMENTATION_DATA_MODIFIED, () => this.noteChange());
    on(Events.ANNOTATION_COMPLETED, event => isPrompt(event.detail.annotation) && this.runOnClick());
  }

  async openCase(image) {
    this.image = image;
    open(image).catch(() => undefined); // the server fetches and encodes it before the first click
    const found = await currentLabel(image);
    this.changed = this.count().length > 0;
    if (found && this.changed) {
      this.view.load.hidden = false; // the first click was quicker than the label
    } else if (found) {
      await this.show(found);
    }
    this.showOffer();
    this.view.submit.disabled = false; // until here a label of somebody else could have been replaced unseen
    this.view.root.dataset.ready = image;
  }

  async load() {
    const found = await currentLabel(this.image);
    if (found) {
      await this.show(found);
    }
  }

  async show(found) {
    show(this.services, found.voxels, this.labels);
    this.changed = false;
    this.before = null;
    this.view.undo.hidden = true;
    this.seen = found.version;
    this.view.load.hidden = true;
    this.count();
    const { labels } = await savedLabels(this.image);
    const author = labels.find(({ version }) => version === found.version)?.author ?? 'somebody';
    this.say(`Shown: version ${found.version}, saved by ${author}.`);
  }

  undo() {
    put(this.services, this.before);
    this.before = null;
    this.view.undo.hidden = true;
  }

  /** A request, {params, mask}, with who asks and for which label; a click outside is of the label it was made for. */
  completed(model, params) {
    const label = chosenLabel();
    if (!this.deepgrow.has(model) || !label) {
      return { params: { client_id: this.client(), ...params }, mask: null };
    }
    const background = (params.background ?? []).filter(point => {
      const key = point.join();
      if (!this.outside.has(key)) {
        this.outside.set(key, label);
      }
      return this.outside.get(key) === label;
    });
    const asked = { client_id: this.client(), label, ...params, background };
    // In 2D nothing but the slice that was clicked changes.
    return this.isWhole(model) ? this.corrections.complete(label, numberOf(this.services, label), voxels(this.services), asked) : { params: asked, mask: null };
  }

  /** Whether the model answers with a whole object, of one label. */
  isWhole(model) {
    return this.deepgrow.get(model) === 3;
  }

  noteStart() {
    this.asking++;
    this.before = voxels(this.services);
    this.waiting.splice(0).forEach(resolve => setTimeout(resolve, 0));
  }

  noteChange() {
    this.changed = true;
    clearTimeout(this.counting);
    this.counting = setTimeout(() => this.count(), COUNT_MS);
  }

  count(array = voxels(this.services)) {
    clearTimeout(this.counting);
    const found = contents(this.services, this.labels, array);
    this.view.contents.replaceChildren(...found.map(({ name, count, value }) => row(name, count, value !== undefined)));
    this.view.empty.hidden = found.length > 0;
    return found;
  }

  async submit() {
    this.checkSeries();
    const array = voxels(this.services);
    const found = this.count(array);
    const strange = found.filter(({ value }) => value === undefined).map(({ name }) => name);
    if (!found.length) {
      throw new Error('There is nothing to submit: no voxel has a label.');
    }
    if (strange.length) {
      throw new Error(`Not a label of this task: ${strange.join(', ')}. Its labels are ${Object.keys(this.labels).join(', ')}.`);
    }
    const label_info = found.map(({ name, value }) => ({ name, idx: value }));
    const params = { label_info, client_id: this.client(), seen_version: this.seen };
    this.say('Sending ...');
    this.changed = false; // what is painted from here on is not in what is sent
    this.sending = true;
    try {
      const answer = await saveLabel(this.image, packed(array, found), params, part => this.showProgress(part));
      this.seen = answer.version;
      sessionStorage.removeItem(OFFER_KEY); // it is nobody's any more
      this.view.skip.hidden = true;
      this.say(told(answer), answer.others.length || !['stored', null].includes(answer.pacs) ? 'error' : 'done');
    } catch (error) {
      this.changed = true;
      throw error;
    } finally {
      this.sending = false;
      this.showProgress(null);
      this.poll();
    }
  }

  async next() {
    if (this.mayLeave()) {
      await this.take(this.client());
    }
  }

  /** Opens the case that the strategy has for `client`. */
  async take(client) {
    const found = await nextCase(client);
    if (!found.id) {
      this.say(found.message);
      return;
    }
    const text = `Case ${found.rank} of ${found.of}: ${found.reason}.`;
    sessionStorage.setItem(OFFER_KEY, JSON.stringify({ image: found.id, client, text }));
    if (found.id === this.image) {
      this.say('This case is still yours: submit it, or skip it.');
      this.showOffer();
    } else {
      this.go(found.StudyInstanceUID, found.SeriesInstanceUID);
    }
  }

  /** Another case instead of this one, which others are offered then. */
  async skip() {
    if (this.mayLeave()) {
      // It was offered to the name that was given then. Where somebody else has it by now there is nothing to give back.
      const { client } = this.offer() ?? { client: this.client() };
      await giveBack(this.image, client).catch(() => undefined);
      await this.take(client);
    }
  }

  /** {image, client, text} of this case, if it was offered in this tab. */
  offer() {
    const offer = JSON.parse(sessionStorage.getItem(OFFER_KEY) ?? 'null');
    return offer?.image === this.image ? offer : null;
  }

  /** Why this case was offered, if it was. */
  showOffer() {
    const offer = this.offer();
    this.view.offer.textContent = offer?.text ?? '';
    this.view.skip.hidden = !offer;
  }

  /** Presses of OHIF's own buttons that would do something else than they say. */
  replacePress(event) {
    const leaves = event.target.closest?.('[data-cy="return-to-work-list"]') && !this.mayLeave();
    const pressed = pressedRun(event);
    if (isNextSample(event)) {
      this.guarded(() => this.next());
    } else if (pressed === 'points') {
      this.run();
    } else if (pressed === 'other') {
      try {
        this.checkSeries();
        return;
      } catch (error) {
        this.say(error.message, 'error');
      }
    } else if (!leaves) {
      return;
    }
    event.stopImmediatePropagation();
    event.preventDefault();
  }

  async runOnClick() {
    if (!this.view.everyClick.checked) {
      return;
    }
    if (this.asking) {
      this.clicked = true; // one more when the answer is here, however many clicks came meanwhile
      return;
    }
    await new Promise(resolve => setTimeout(resolve, 0)); // the tool has to finish the click first
    await this.run();
  }

  async run() {
    try {
      this.checkSeries();
      await run(() => new Promise(resolve => this.waiting.push(resolve)));
    } catch (error) {
      this.say(error.message, 'error');
    }
  }

  answered(answer) {
    this.asking--;
    if (answer.ok) {
      if (this.isWhole(answer.model)) {
        const { label } = answer.params;
        this.corrections.answered(label, numberOf(this.services, label), voxels(this.services), answer.params, answer.body);
      }
      this.view.undo.hidden = false;
      this.answers++;
      this.view.model.textContent = `${answer.base}, ${versionText(answer.version)} answered in ${answer.seconds.toFixed(2)} s`;
      this.view.root.dataset.answers = this.answers;
      this.view.root.dataset.version = answer.version;
      this.say('');
    } else {
      this.say(answer.text, 'error');
    }
    if (this.clicked) {
      this.clicked = false;
      setTimeout(() => this.runOnClick(), 50);
    }
  }

  async poll() {
    clearTimeout(this.polling);
    try {
      if (!document.hidden) {
        this.showStatus(await status());
        await this.noticeOthers();
      }
    } catch {
      this.view.training.textContent = 'The server does not answer.';
    } finally {
      if (!this.ended.signal.aborted) {
        this.polling = setTimeout(() => this.poll(), POLL_MS);
      }
    }
  }

  showStatus(about) {
    const { training, model, progress } = this.view;
    if (!this.answers) {
      model.textContent = `${about.base ?? 'no base yet'}, ${versionText(about.version)} serves`;
    }
    const running = about.training_progress;
    progress.hidden = !running;
    progress.value = running?.percent ?? 0;
    training.textContent = running ? `Training: ${running.percent} %, ${running.doing}` : queueText(about);
    this.view.root.dataset.serving = about.version;
    const problem = about.problem ?? about.pacs?.problem;
    this.view.problem.textContent = problem ?? '';
    this.view.problem.hidden = !problem;
  }

  async noticeOthers() {
    if (!this.image || this.view.submit.disabled) {
      return;
    }
    const newest = (await savedLabels(this.image)).labels.at(-1);
    if (newest && newest.version > this.seen && newest.author !== this.client()) {
      this.view.load.hidden = false;
      this.say(`${newest.author} has submitted this case too, as version ${newest.version}. All versions are kept; the newest is used.`, 'error');
    }
  }

  /** The name that was given, else one that this browser keeps: two people at two browsers are two. */
  client() {
    let own = localStorage.getItem(CLIENT_KEY);
    if (!own) {
      own = `ohif-${crypto.getRandomValues(new Uint32Array(1))[0].toString(16)}`;
      localStorage.setItem(CLIENT_KEY, own);
    }
    return this.view.name.value.trim() || own;
  }

  say(text, kind = '') {
    this.view.message.textContent = text;
    this.view.message.className = kind;
  }

  showProgress(part) {
    this.view.sent.hidden = part === null;
    this.view.sent.value = part ?? 0;
    if (part === 1) {
      this.say('Storing ...');
    }
  }

  async guarded(action) {
    const { submit, next } = this.view;
    submit.disabled = next.disabled = true;
    try {
      await action();
    } catch (error) {
      this.say(error.message, 'error');
    } finally {
      submit.disabled = !this.view.root.dataset.ready;
      next.disabled = false;
    }
  }

  /** Waits until `condition()` is something, and gives that. */
  async until(condition) {
    const deadline = Date.now() + PATIENCE_MS;
    while (!this.ended.signal.aborted && Date.now() < deadline) {
      const found = condition();
      if (found) {
        return found;
      }
      await new Promise(resolve => setTimeout(resolve, 100));
    }
    throw new Error('The image did not appear; reload the page.');
  }
}

const versionText = version => (version === 0 ? 'without training' : version === null ? 'no version yet' : `version ${version}`);

function queueText(about) {
  const wanted = about.auto_train ? ` of ${about.train_after}` : '';
  return `${about.pending_labels}${wanted} new labels for the next training`;
}

function told({ version, others, pacs }) {
  const where = { stored: ', in the PACS', waiting: '; it goes to the PACS as soon as that answers' };
  const saved = `Saved as version ${version}${pacs === null ? '' : (where[pacs] ?? `; the PACS cannot have it: ${pacs}`)}.`;
  const names = others.map(({ author, version: number }) => `${author} (version ${number})`).join(', ');
  return others.length ? `${saved} Meanwhile saved by ${names}: all versions are kept, yours is the newest.` : saved;
}

function row(name, count, known) {
  const line = document.createElement('tr');
  line.className = known ? '' : 'error';
  for (const text of [known ? name : `${name}: not a label of this task`, `${count.toLocaleString('en')} voxels`]) {
    line.append(Object.assign(document.createElement('td'), { textContent: text }));
  }
  return line;
}

/** The dock's elements by what they are for. */
function view() {
  const root = document.createElement('section');
  root.id = 'medsa-dock';
  root.setAttribute('aria-label', 'medsa');
  root.innerHTML = `
    <link rel="stylesheet" href="/ohif/medsa/dock.css">
    <p><b>medsa</b> <span data-part="model"></span> <a href="/medsa/" target="_blank" rel="noopener">overview</a></p>
    <p data-part="offer" id="medsa-offer" class="soft-text"></p>
    <label>Your name <input type="text" data-part="name" maxlength="64" autocomplete="name" placeholder="for the record of labels"></label>
    <label><input type="checkbox" data-part="everyClick"> Run on every click</label>
    <table aria-label="What would be submitted"><tbody data-part="contents"></tbody></table>
    <p data-part="empty" class="soft-text">No voxel has a label yet.</p>
    <div class="buttons">
      <button type="button" data-part="submit" id="medsa-submit" disabled>Submit label</button>
      <button type="button" data-part="next" id="medsa-next" class="soft">Next sample</button>
      <button type="button" data-part="skip" id="medsa-skip" class="soft" hidden>Skip case</button>
      <button type="button" data-part="undo" class="soft" hidden>Undo answer</button>
      <button type="button" data-part="load" class="soft" hidden>Show newest label</button>
    </div>
    <progress data-part="sent" max="1" aria-label="Part of the label that is sent" hidden></progress>
    <p data-part="message" id="medsa-message" role="status"></p>
    <p data-part="training" class="soft-text"></p>
    <progress data-part="progress" max="100" aria-label="Part of the training's time that is over" hidden></progress>
    <p data-part="problem" class="error" hidden></p>`;
  const parts = Object.fromEntries([...root.querySelectorAll('[data-part]')].map(part => [part.dataset.part, part]));
  parts.everyClick.checked = localStorage.getItem(EVERY_CLICK_KEY) !== 'false';
  parts.name.value = localStorage.getItem(NAME_KEY) ?? '';
  return { root, ...parts };
}
