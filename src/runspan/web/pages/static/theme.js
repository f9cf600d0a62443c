// Sets the colours before anything is painted; a classic script, for a module would come too late.
(function () {
  "use strict";
  try {
    var chosen = localStorage.getItem("runspan.theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // Storage may be forbidden: the system's choice holds.
  }
})();
