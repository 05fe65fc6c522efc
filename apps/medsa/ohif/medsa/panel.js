// The MONAI Label panel, used as a person uses it: it has no other way in.

const BACKGROUND = 'background';
const PROBE = 'ProbeMONAILabel';
const START_MS = 2000;
const SETTLE_MS = 50;

const mended = new WeakSet(); // annotation managers
let lastLabel = null; // of the last row that was chosen and is a label

/** Connects it to the server, and makes it ready for the first click. `until` waits for a condition. */
export async function connect(until, hasSegmentation) {
  mendSavedClicks();
  lastLabel = null;
  const button = await until(() => document.querySelector('.monaiLabelPanel .settingsTable button.actionButton'));
  button.click();
  await until(hasSegmentation);
  const tab = await until(pointTab);
  tab.querySelector('input.tab-switch').click();
  rows().find(row => nameOf(row) !== BACKGROUND)?.click();
}

/**
 * The panel keeps the clicks of a label that is left, and then cannot run any more if there was none: it goes through
 * what cornerstone calls the clicks of a frame of reference, which is undefined where that has none.
 */
function mendSavedClicks() {
  const manager = window.cornerstoneTools.annotation.state.getAnnotationManager();
  if (mended.has(manager)) {
    return;
  }
  mended.add(manager);
  const save = manager.saveAnnotations;
  manager.saveAnnotations = (group, tool) => {
    const saved = save(group, tool);
    const kept = Object.entries(saved ?? {}).filter(([, byTool]) => !tool || byTool?.[tool]);
    return group ? saved : Object.fromEntries(kept);
  };
}

/** The label that clicks are for; null before one was chosen. */
export const chosenLabel = () => lastLabel;

/** Keeps track of the row that is chosen. Whoever chooses one wants to click, and no more to paint. */
export function noteRow(event, commandsManager) {
  const row = event.target.closest?.('.monaiLabelPanel tr.clickable-row');
  if (row) {
    commandsManager.runCommand('setToolActive', { toolName: PROBE });
  }
  if (row && nameOf(row) !== BACKGROUND) {
    lastLabel = nameOf(row);
  }
}

/**
 * Chooses the label again that was chosen, where a press in the panel has left none: it forgets the label with another
 * model and with another tab, and clicks without one would be lost.
 */
export function keepRow(event) {
  if (!event.isTrusted || !event.target.closest?.('.monaiLabelPanel')) {
    return;
  }
  setTimeout(() => {
    if (pointTab()?.querySelector('input.tab-switch').checked && !rows().some(isChosen)) {
      labelRow(lastLabel)?.click();
    }
  }, SETTLE_MS);
}

/** Whether an annotation is a click for the model. */
export const isPrompt = annotation => annotation?.metadata?.toolName === PROBE;

/**
 * Runs the model on the clicks; `started` resolves when its request is on the way.
 *
 * The panel takes clicks on the background for the object's own while that row is chosen, loses the clicks where no row
 * is, and ends with an error in 2D where there are none. Throws where there is nothing to run.
 */
export async function run(started) {
  const onBackground = rows().find(row => nameOf(row) === BACKGROUND && isChosen(row));
  if (!rows().some(row => nameOf(row) !== BACKGROUND && isChosen(row))) {
    if (lastLabel === null) {
      throw new Error('Choose a label first, below Available Organ(s).');
    }
    labelRow(lastLabel)?.click();
    await nextFrame();
  }
  try {
    if (!clicksShown()) {
      throw new Error(`Click inside ${lastLabel} first.`);
    }
    const sent = started();
    runButton(pointTab()).click();
    await Promise.race([sent, new Promise(resolve => setTimeout(resolve, START_MS))]);
  } finally {
    // Whoever chose another row meanwhile stays there.
    if (onBackground && isChosen(labelRow(lastLabel))) {
      onBackground.click();
    }
  }
}

/** Which tab's Run was pressed by a person: 'points', 'other', or null for no press of one. */
export function pressedRun(event) {
  const button = event.isTrusted && event.target.closest?.('.monaiLabelPanel .tab button');
  if (!button || button.textContent.trim() !== 'Run') {
    return null;
  }
  return pointTab()?.contains(button) ? 'points' : 'other';
}

/** Whether that was a press of the panel's own Next Sample, which asks for a random case whatever was chosen. */
export const isNextSample = event => event.target.closest?.('.monaiLabelPanel button')?.textContent.trim() === 'Next Sample';

function pointTab() {
  const tabs = [...document.querySelectorAll('.monaiLabelPanel .tab')];
  return tabs.find(tab => tab.querySelector('label.tab-label')?.textContent === 'Point Prompts') ?? null;
}

function clicksShown() {
  const { getAllAnnotations } = window.cornerstoneTools.annotation.state;
  return getAllAnnotations().filter(isPrompt).length;
}

const rows = () => [...(pointTab()?.querySelectorAll('tr.clickable-row') ?? [])];
const nameOf = row => row.textContent.trim();
const labelRow = name => rows().find(row => nameOf(row) === name);
const isChosen = row => ['darkred', 'darkblue'].includes(row?.style.backgroundColor);
const runButton = tab => [...tab.querySelectorAll('button')].find(button => button.textContent.trim() === 'Run');
const nextFrame = () => new Promise(resolve => requestAnimationFrame(() => setTimeout(resolve, 0)));
