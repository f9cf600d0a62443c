// Applies the stored colour theme before the first paint. A classic script, because modules run too late.
(function () {
  "use strict";
  try {
    var stored = localStorage.getItem("runspan.theme");
    if (stored === "light" || stored === "dark") document.documentElement.dataset.theme = stored;
  } catch {
    // Storage may be blocked. The system's theme applies.
  }
})();
