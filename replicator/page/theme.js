// Sets the chosen colours before anything is drawn. "auto" follows the system.
"use strict";
(() => {
  let chosen = "auto";
  try {
    chosen = localStorage.getItem("replicator-theme") || "auto";
  } catch {
    // storage is forbidden here: the system decides
  }
  document.documentElement.dataset.theme = ["light", "dark"].includes(chosen) ? chosen : "auto";
})();
