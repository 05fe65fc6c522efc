// OHIF's MONAI Label mode with what it lacks: tools to paint with, and the dock with which labels are submitted.
import { closeDock, openDock } from './dock.js';

const PAINT_PANEL = '@ohif/extension-cornerstone.panelModule.panelSegmentationWithTools';
const PAINT_BUTTONS = ['BrushTools', 'Shapes'];

/** The mode, made of those that OHIF ships. */
export async function medsaMode(modeConfiguration, loadModules) {
  rememberServer();
  const [monai, segmentation] = await loadModules(['@ohif/mode-monai-label', '@ohif/mode-segmentation']);
  const mode = await monai.modeFactory({ modeConfiguration, loadModules });
  const painting = await segmentation.modeFactory({ modeConfiguration, loadModules });

  // Beside the MONAI Label panel and not behind it: a panel that is not shown forgets its clicks.
  const [route] = mode.routes;
  const layout = route.layoutTemplate;
  route.layoutTemplate = context => {
    const shown = layout(context);
    shown.props.leftPanels = [...shown.props.leftPanels, PAINT_PANEL];
    return shown;
  };

  const { onModeEnter, onModeExit } = mode;
  mode.onModeEnter = context => {
    onModeEnter(context);
    context.servicesManager.services.toolbarService.addButtons(paintButtons(painting, context));
    openDock(context);
  };
  mode.onModeExit = context => {
    closeDock();
    onModeExit(context);
  };
  return mode;
}

/** The panel asks for the server's address and reads it from a cookie: it is the one that this page came from. */
function rememberServer() {
  document.cookie = `MONAILABEL_SERVER_URL=${escape(`${location.origin}/`)}`;
}

/** Brush, eraser, threshold and shapes as the segmentation mode has them, which hands them to a toolbar only. */
function paintButtons(painting, context) {
  const found = [];
  const nothing = new Proxy({}, { get: () => () => undefined });
  const toolbarService = { addButtons: some => found.push(...some), createButtonSection: () => undefined };
  const services = {
    ...context.servicesManager.services,
    toolbarService,
    toolGroupService: nothing,
    measurementService: nothing,
  };
  painting.onModeEnter({ ...context, servicesManager: { services } });
  return found.filter(button => PAINT_BUTTONS.includes(button.id));
}
