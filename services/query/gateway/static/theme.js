// Light or dark: as the system says, until somebody chooses.
const button = document.getElementById("theme");
const dark = matchMedia("(prefers-color-scheme: dark)");

function kept() {
  try { return localStorage.getItem("cmt-theme"); } catch { return null; }
}

function show(theme) {
  document.documentElement.dataset.theme = theme;
  button.setAttribute("aria-pressed", String(theme === "dark"));
}

const system = () => (dark.matches ? "dark" : "light");

export function followTheme() {
  show(kept() || system());
  dark.addEventListener("change", () => { if (!kept()) show(system()); });
  button.addEventListener("click", () => {
    const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("cmt-theme", theme); } catch { /* it holds until the page is left */ }
    show(theme);
  });
}
