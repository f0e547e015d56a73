// The few things that every view is made of. All text goes through preact, which never parses it as markup.
import { Fragment, h, render } from "./vendor/preact/preact.module.js";
import {
  useCallback,
  useEffect,
  useLayoutEffect,
  useMemo,
  useRef,
  useState,
} from "./vendor/preact/hooks.module.js";
import htm from "./vendor/htm/htm.module.js";
import { duration, number, percent, when } from "./format.js";
import { IN_WORK, STATES, STATUSES, label } from "./states.js";

export const html = htm.bind(h);
export { Fragment, render, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState };

/** Say something to who cannot see it change. */
export function announce(text) {
  const place = document.getElementById("announcer");
  if (place.textContent !== text) place.textContent = text;
}

/** The sign of a state: a shape of its own, so that no one needs the colours. */
export function Sign({ state }) {
  const { path } = STATES[state] ?? STATES.pending;
  return html`<svg class="sign" data-state=${state} viewBox="0 0 10 10" aria-hidden="true" focusable="false">
    <path d=${path} />
  </svg>`;
}

/** A device's state. */
export function State({ state }) {
  return html`<span class="state"><${Sign} state=${state} />${label(state)}</span>`;
}

/** How a rollout, a run or an orchestration stands. */
export function Status({ status }) {
  const [kind, text] = STATUSES[status] ?? ["plain", label(status ?? "unknown")];
  return html`<span class="status" data-kind=${kind}>${text}</span>`;
}

/** A time, in short, with all of it in its title. */
export function Time({ at }) {
  if (!at) return html`<span class="faint">–</span>`;
  return html`<time datetime=${at} title=${at}>${when(at)}</time>`;
}

/** A page's heading, which has the focus when the page was gone to. */
export function Heading({ children, kicker, aside }) {
  return html`<header class="page-head">
    <div>
      ${kicker && html`<p class="kicker">${kicker}</p>`}
      <h1 tabindex="-1">${children}</h1>
    </div>
    ${aside && html`<div class="page-aside">${aside}</div>`}
  </header>`;
}

/** What the counts of devices by state add up to, as one bar. */
export function Stack({ counts, total, name, thin }) {
  const parts = Object.keys(STATES).filter((state) => counts[state] > 0);
  const ended = parts.reduce((sum, state) => sum + (STATES[state].final ? counts[state] : 0), 0);
  const share = total > 0 ? (100 * ended) / total : 0;
  const words = parts.map((state) => `${number(counts[state])} ${label(state)}`).join(", ") || "no devices";
  return html`<div
    class=${thin ? "stack thin" : "stack"}
    role="progressbar"
    aria-label=${name}
    aria-valuemin="0"
    aria-valuemax="100"
    aria-valuenow=${Math.floor(share)}
    aria-valuetext=${`${percent(share)} ended: ${words}`}
    title=${words}
  >
    ${parts
      .filter((state) => state !== "pending" && state !== "new")
      .sort((a, b) => STATES[a].place - STATES[b].place)
      .map(
        (state) =>
          html`<span key=${state} data-state=${state}
            style=${{ width: `${(100 * counts[state]) / total}%` }} />`,
      )}
  </div>`;
}

/** The counts of devices by state, in words; those that are none are left out. */
export function Counts({ counts }) {
  const work = IN_WORK.reduce((sum, state) => sum + (counts[state] ?? 0), 0);
  const parts = ["provisioned", "failed", "timed_out", "rejected", "cancelled"].filter((s) => counts[s] > 0);
  const waiting = (counts.pending ?? 0) + (counts.new ?? 0);
  return html`<ul class="counts" role="list">
    ${parts.map((s) => html`<li key=${s}><${Sign} state=${s} /><b>${number(counts[s])}</b> ${label(s)}</li>`)}
    ${work > 0 && html`<li key="work"><${Sign} state="downloading" /><b>${number(work)}</b> in work</li>`}
    ${waiting > 0 && html`<li key="wait"><${Sign} state="pending" /><b>${number(waiting)}</b> to come</li>`}
  </ul>`;
}

/** One number with its name. */
export function Figure({ name, value, unit, hint }) {
  return html`<div class="figure" title=${hint}>
    <dt>${name}</dt>
    <dd>${value ?? "–"}${value != null && unit && html`<small>${unit}</small>`}</dd>
  </div>`;
}

/** Rate and expected end of something that runs. */
export function Pace({ of: it }) {
  return html`<span class="pace">
    <b>${number(it.devices_per_s ?? 0, 1)}</b>/s
    ${it.eta_s != null && !it.ended_at && html` · <b>${duration(it.eta_s)}</b> left`}
    ${it.ended_at && it.elapsed_s != null && html` · took <b>${duration(it.elapsed_s)}</b>`}
  </span>`;
}

/** What stands where something will be, of its size. */
export function Skeleton({ lines = 3, tall }) {
  return html`<div class="skeleton" aria-hidden="true">
    ${tall ? html`<span class="tall" />` : Array.from({ length: lines }, (_, i) => html`<span key=${i} />`)}
  </div>`;
}

/** Nothing is here: what to do so that something is. */
export function Empty({ title, children, command }) {
  return html`<div class="empty">
    <p class="empty-title">${title}</p>
    ${children && html`<p>${children}</p>`}
    ${command && html`<p>On the command line: <code>${command}</code></p>`}
  </div>`;
}

/** A message of the service's, whose commands are in backticks. */
export function Prose({ text }) {
  return String(text)
    .split("`")
    .map((part, i) => (i % 2 === 1 ? html`<code key=${i}>${part}</code>` : part));
}

/** What went wrong, and what to do. */
export function ErrorNote({ error, retry }) {
  if (!error) return null;
  return html`<div class="note" data-kind="bad" role="alert">
    <p><strong>${error.title ?? "That did not work"}.</strong> <${Prose} text=${error.message} /></p>
    ${retry && html`<p><button type="button" class="quiet" onClick=${retry}>Try again</button></p>`}
  </div>`;
}

/** A query's data, or what stands for it. */
export function Loaded({ query, lines, tall, children }) {
  if (query.data) return children(query.data);
  if (query.error) return html`<${ErrorNote} error=${query.error} retry=${query.reload} />`;
  return html`<${Skeleton} lines=${lines} tall=${tall} />`;
}

/** JSON of any kind, to be read. */
export function Json({ value, name }) {
  if (value === undefined || value === null) return html`<span class="faint">none</span>`;
  const text = typeof value === "string" ? pretty(value) : JSON.stringify(value, null, 2);
  if (!text.includes("\n") && text.length < 80) return html`<code class="value">${text}</code>`;
  return html`<pre class="json" tabindex="0" aria-label=${name ?? "JSON"}>${text}</pre>`;
}

function pretty(text) {
  if (!/^\s*[[{]/.test(text)) return text;
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
