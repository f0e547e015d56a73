// The page: its frame, and which view the address means.
import { access, AccessNote, learnAccess } from "./access.js";
import { ConnectionNote, Connection } from "./connection.js";
import { live } from "./live.js";
import { useRoute } from "./router.js";
import { html, render, useEffect, useRef, useState } from "./ui.js";
import { Device } from "./views/device.js";
import { Devices } from "./views/devices.js";
import { Instance } from "./views/instance.js";
import { Launch } from "./views/launch.js";
import { Orchestrations } from "./views/orchestrations.js";
import { Overview } from "./views/overview.js";
import { Rollout } from "./views/rollout.js";
import { Rollouts } from "./views/rollouts.js";
import { Run } from "./views/run.js";

const AREAS = [
  ["", "Overview", "#/"],
  ["rollouts", "Rollouts", "#/rollouts"],
  ["devices", "Devices", "#/devices"],
  ["orchestrations", "Orchestrations", "#/orchestrations"],
  ["launch", "Launch", "#/launch/fleet"],
];
const BELONGS = { runs: "rollouts" };

function view({ parts, search, visit }) {
  const [area = "", id] = parts;
  if (area === "") return html`<${Overview} />`;
  if (area === "rollouts") return id ? html`<${Rollout} key=${id} id=${id} />` : html`<${Rollouts} />`;
  if (area === "runs" && id) return html`<${Run} key=${id} id=${id} />`;
  if (area === "devices")
    return id ? html`<${Device} key=${id} id=${id} />` : html`<${Devices} key=${visit} search=${search} />`;
  if (area === "orchestrations") {
    return id ? html`<${Instance} key=${id} id=${id} />` : html`<${Orchestrations} key=${visit} search=${search} />`;
  }
  if (area === "launch" && access.readOnly) {
    return html`<div class="empty">
      <h1 tabindex="-1">This is for looking only</h1>
      <p>The token that you have logged in with may only read. Who may launch something has the full one.</p>
    </div>`;
  }
  if (area === "launch") return html`<${Launch} what=${id ?? "fleet"} search=${search} />`;
  return html`<div class="empty">
    <h1 tabindex="-1">There is no such page</h1>
    <p><a href="#/">The overview</a> leads everywhere.</p>
  </div>`;
}

function App() {
  const route = useRoute();
  const main = useRef(null);
  const [first, setFirst] = useState(true);
  const area = BELONGS[route.parts[0]] ?? route.parts[0] ?? "";
  const page = route.parts.join("/");
  useEffect(() => {
    document.title = `${AREAS.find(([name]) => name === area)?.[1] ?? "Not found"} · Muster`;
    if (first) {
      setFirst(false);
      return;
    }
    scrollTo(0, 0);
    main.current.querySelector("h1")?.focus();
  }, [page]);
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to the content</a>
    <header class="top">
      <a class="brand" href="#/"><img src="/page/icon.svg" alt="" width="22" height="22" />Muster</a>
      <nav aria-label="Main">
        ${AREAS.filter(([name]) => name !== "launch" || !access.readOnly).map(
          ([name, text, address]) =>
            html`<a key=${name} href=${address} aria-current=${name === area ? "page" : undefined}>${text}</a>`,
        )}
      </nav>
      <div class="top-end"><${Connection} /><${AccessNote} /><${ThemeButton} /></div>
    </header>
    <${ConnectionNote} />
    <main id="main" tabindex="-1" ref=${main}>${view(route)}</main>
    <footer class="bottom">
      <a href="/docs">HTTP API</a>
      <span>On the command line: <code>muster --help</code></span>
    </footer>
  `;
}

function skip(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

const THEMES = { system: "light", light: "dark", dark: "system" };

function ThemeButton() {
  const [theme, setTheme] = useState(document.documentElement.dataset.theme ?? "system");
  const change = () => {
    const next = THEMES[theme];
    setTheme(next);
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem("muster-theme", next);
    } catch {
      // It holds for this visit.
    }
    dispatchEvent(new Event("muster-theme"));
  };
  return html`<button
    type="button"
    class="quiet theme"
    onClick=${change}
    aria-label=${`Theme: ${theme}. Change to ${THEMES[theme]}`}
    title=${`Theme: ${theme}`}
  >
    <svg viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">
      ${
        theme === "light"
          ? html`<path
            d="M8 4.5A3.5 3.5 0 1 0 8 11.5 3.5 3.5 0 1 0 8 4.5ZM7.4 1h1.2v2H7.4ZM7.4 13h1.2v2H7.4ZM1 7.4h2v1.2H1ZM13 7.4h2v1.2h-2Z" />`
          : theme === "dark"
            ? html`<path d="M6.2 1.6A6.6 6.6 0 1 0 14.4 9.8 5.6 5.6 0 0 1 6.2 1.6Z" />`
            : html`<path fill-rule="evenodd"
              d="M8 1.5A6.5 6.5 0 1 0 8 14.5 6.5 6.5 0 1 0 8 1.5ZM8 3V13A5 5 0 0 1 8 3Z" />`
      }
    </svg>
  </button>`;
}

const place = document.getElementById("app");
await learnAccess();
place.replaceChildren();
live.start();
render(html`<${App} />`, place);
