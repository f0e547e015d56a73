// Before anything is drawn, so that a page in the dark never flashes white. A classic script: modules come later.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("muster-theme");
  } catch {
    // Storage may be forbidden: then the system's choice holds.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
