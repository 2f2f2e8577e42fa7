// Before anything is drawn, so that no page flashes: light or dark as it was chosen, else as the system has it.
(() => {
  try {
    const chosen = localStorage.getItem("otel-llm-theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch { /* storage may be off */ }
})();
