// What OHIF reads when it starts. In place of the one that MONAI Label ships: its MONAI Label mode is wrapped
// (medsa/mode.js), and the PACS is reached through this server, so that its password never is in a browser.
const MEDSA_SCRIPTS = new URL('medsa/', document.currentScript.src);

window.config = {
  routerBasename: '/ohif/',
  showStudyList: true,
  extensions: [],
  modes: [
    {
      // The id of the one that is shipped: of two with one id the first counts.
      id: '@ohif/mode-monai-label',
      modeFactory: async ({ modeConfiguration, loadModules }) => {
        const { medsaMode } = await import(new URL('mode.js', MEDSA_SCRIPTS));
        return medsaMode(modeConfiguration, loadModules);
      },
    },
  ],
  showWarningMessageForCrossOrigin: true,
  showCPUFallbackMessage: true,
  showLoadingIndicator: true,
  strictZSpacingForVolumeViewport: true,
  useSharedArrayBuffer: 'FALSE',
  defaultDataSourceName: 'dicomweb',
  dataSources: [
    {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
      sourceName: 'dicomweb',
      configuration: {
        friendlyName: 'PACS',
        name: 'pacs',
        qidoRoot: '/proxy/dicom/qido',
        wadoRoot: '/proxy/dicom/wado',
        wadoUriRoot: '/proxy/dicom/wado',
        qidoSupportsIncludeField: true,
        supportsFuzzyMatching: true,
        supportsWildcard: true,
        supportsReject: false,
        imageRendering: 'wadors',
        thumbnailRendering: 'wadors',
        enableStudyLazyLoad: false,
        dicomUploadEnabled: true,
        bulkDataURI: { enabled: true },
      },
    },
  ],
};
