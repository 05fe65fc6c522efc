// The segmentation that the MONAI Label panel works on, as voxels and names.

const SEGMENTATION = '1'; // the panel's own name for it

/** Its voxels, uint8 with i fastest; null before the panel has made it. */
export function voxels(services) {
  const { segmentationService } = services;
  const made = segmentationService.getSegmentation(SEGMENTATION); // without one the next call throws
  return (made && segmentationService.getLabelmapVolume(SEGMENTATION))?.voxelManager.getCompleteScalarDataArray() ?? null;
}

/** Segment number -> name, as OHIF shows them. */
export function segmentNames(services) {
  const { segments, config } = services.segmentationService.getSegmentation(SEGMENTATION) ?? {};
  const found = Object.values(segments ?? config?.segments ?? {}).filter(Boolean);
  return new Map(found.map(segment => [segment.segmentIndex, segment.label]));
}

/** OHIF's number of the segment called `name`; undefined for none. */
export const numberOf = (services, name) => [...segmentNames(services)].find(([, found]) => found === name)?.[0];

/** Segment number -> its voxels, for those that have any. */
export function counts(array) {
  const found = new Uint32Array(256);
  for (let at = 0; at < array.length; at++) {
    found[array[at]]++;
  }
  return new Map([...found.entries()].filter(([number, count]) => number && count));
}

/** What would be sent: [{name, count, value}] by name; `value` is undefined for a name that is no label of the task. */
export function contents(services, labels, array = voxels(services)) {
  if (!array) {
    return [];
  }
  const names = segmentNames(services);
  return [...counts(array)]
    .map(([number, count]) => ({ number, count, name: names.get(number) ?? `segment ${number}` }))
    .map(found => ({ ...found, value: labels[found.name] }))
    .sort((one, other) => one.name.localeCompare(other.name));
}

/** `array` with the task's values in place of OHIF's numbers, by name and never by position. */
export function packed(array, found) {
  const table = new Uint8Array(256);
  for (const { number, value } of found) {
    table[number] = value;
  }
  const values = new Uint8Array(array.length);
  for (let at = 0; at < array.length; at++) {
    values[at] = table[array[at]];
  }
  return values;
}

/** Shows `array`, whose numbers are OHIF's. */
export function put(services, array) {
  services.segmentationService.getLabelmapVolume(SEGMENTATION).voxelManager.setCompleteScalarDataArray(array);
  const { Events } = window.cornerstoneTools.Enums;
  const { eventTarget, triggerEvent } = window.cornerstone;
  triggerEvent(eventTarget, Events.SEGMENTATION_DATA_MODIFIED, { segmentationId: SEGMENTATION });
}

/** Shows a saved label, whose values are those of `labels`. */
export function show(services, saved, labels) {
  const numbers = new Map([...segmentNames(services)].map(([number, name]) => [name, number]));
  const table = new Uint8Array(256);
  for (const [name, value] of Object.entries(labels)) {
    table[value] = numbers.get(name) ?? 0;
  }
  put(services, saved.map(value => table[value]));
}

/** The series in the active viewport, {study, series}: its SeriesInstanceUID is the image's id. Null for none. */
export function openSeries(services) {
  const { viewports, activeViewportId } = services.viewportGridService.getState();
  const [shown] = viewports.get(activeViewportId)?.displaySetInstanceUIDs ?? [];
  const found = services.displaySetService.getDisplaySetByUID(shown);
  return found && found.Modality !== 'SEG' ? { study: found.StudyInstanceUID, series: found.SeriesInstanceUID } : null;
}

/** Whether all voxels of the image have arrived. */
export function imageIsLoaded() {
  const [engine] = window.cornerstone?.getRenderingEngines() ?? [];
  const viewports = engine?.getViewports() ?? [];
  const shown = viewports.length && viewports.every(viewport => viewport.getImageData?.()?.imageData);
  return Boolean(shown && window.cornerstone.cache.getVolumes()[0]?.loadStatus?.loaded);
}
