// The MONAI Label panel, used as a person uses it: it has no other way in.

const BACKGROUND = 'background';
const PROBE = 'ProbeMONAILabel';

const mended = new WeakSet(); // annotation managers
let lastLabel = null; // of the last row that was chosen and is a label

/** Connects it to the server, and makes it ready for the first click. `until` waits for a condition. */
export async function connect(until, hasSegmentation) {
  mendSavedClicks();
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

/** Whether an annotation is a click for the model. */
export const isPrompt = annotation => annotation?.metadata?.toolName === PROBE;

/** Runs the model on the clicks; `answered` resolves when its answer has come. */
export async function run(answered) {
  const onBackground = rows().find(row => nameOf(row) === BACKGROUND && row.style.backgroundColor === 'darkred');
  // The panel would take clicks on the background for the object's own while that row is chosen.
  if (onBackground) {
    rows().find(row => nameOf(row) === lastLabel)?.click();
    await nextFrame();
  }
  const done = answered();
  [...pointTab().querySelectorAll('button')].find(button => button.textContent.trim() === 'Run').click();
  await done;
  onBackground?.click();
}

/** Whether that was a press of the panel's own Next Sample, which asks for a random case whatever was chosen. */
export const isNextSample = event => event.target.closest?.('.monaiLabelPanel button')?.textContent.trim() === 'Next Sample';

function pointTab() {
  const tabs = [...document.querySelectorAll('.monaiLabelPanel .tab')];
  return tabs.find(tab => tab.querySelector('label.tab-label')?.textContent === 'Point Prompts') ?? null;
}

const rows = () => [...(pointTab()?.querySelectorAll('tr.clickable-row') ?? [])];
const nameOf = row => row.textContent.trim();
const nextFrame = () => new Promise(resolve => requestAnimationFrame(() => setTimeout(resolve, 0)));
