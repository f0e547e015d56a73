// The time line of a device's steps: a table whose last column is drawn to one scale.
import { between, duration, percent, when } from "./format.js";
import { label } from "./states.js";
import { html, useEffect, useState } from "./ui.js";

const TICKS_S = [
  0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400,
];

/** The seconds at which there is a mark, about five of them. */
export function ticks(span_s) {
  const step = TICKS_S.find((one) => span_s / one <= 6) ?? Math.ceil(span_s / 6 / 86400) * 86400;
  const found = [];
  for (let at = 0; at <= span_s + step / 1000; at += step) found.push(at);
  return found;
}

/** `steps` as the API has them; `progress` (0 to 100) is of the download that is under way. */
export function Gantt({ steps, progress, ended }) {
  const open = !ended && steps.some((step) => !step.ended_at);
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    if (!open) return undefined;
    const timer = setInterval(() => setNow(Date.now()), 500);
    return () => clearInterval(timer);
  }, [open]);
  if (steps.length === 0) return null;
  const begin = new Date(steps[0].started_at).getTime();
  const last = Math.max(...steps.map((step) => (step.ended_at ? new Date(step.ended_at).getTime() : now)));
  const span_s = Math.max((last - begin) / 1000, 0.001);
  const share = (at) =>
    Math.min(100, Math.max(0, (100 * (new Date(at ?? now).getTime() - begin)) / 1000 / span_s));
  const marks = ticks(span_s);
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Time line of the steps">
    <table class="gantt">
      <caption
        class="visually-hidden">Steps of the device with attempt, begin, duration and what went wrong</caption>
      <thead>
        <tr>
          <th scope="col">Step</th>
          <th scope="col" class="num">Attempt</th>
          <th scope="col" class="num">Took</th>
          <th scope="col" class="lane">
            <span class="visually-hidden">When</span>
            <span class="axis" aria-hidden="true">
              ${marks.map(
                (at) =>
                  html`<span key=${at} style=${{ left: `${(100 * at) / span_s}%` }}>
                    ${at === 0 ? "0" : duration(at)}</span>`,
              )}
            </span>
          </th>
        </tr>
      </thead>
      <tbody>
        ${steps.map((step, i) => {
          const from = share(step.started_at);
          const to = share(step.ended_at);
          const running = !step.ended_at && !ended;
          const done = running && step.step === "downloading" && progress != null ? progress : null;
          return html`<tr key=${i} data-step=${step.step} data-wrong=${step.error ? "yes" : undefined}>
            <th scope="row">${label(step.step)}</th>
            <td class="num">${step.attempt}</td>
            <td class="num">${duration(between(step.started_at, step.ended_at ?? new Date(now)))}</td>
            <td class="lane">
              <svg viewBox="0 0 1000 20" preserveAspectRatio="none" role="img"
                aria-label=${`from ${when(step.started_at)}${step.ended_at ? ` to ${when(step.ended_at)}` : ", goes on"}`}>
                ${marks.map((at) => html`<line key=${at} class="mark" x1=${(1000 * at) / span_s}
                  x2=${(1000 * at) / span_s} y1="0" y2="20" />`)}
                <rect class="bar" x=${from * 10} width=${Math.max((to - from) * 10, 3)} y="4" height="12" />
                ${done !== null && html`<rect class="bar done" x=${from * 10}
                  width=${((to - from) * 10 * done) / 100} y="4" height="12" />`}
              </svg>
              ${done !== null && html`<span class="bar-note">${percent(done)} downloaded</span>`}
              ${step.retrying_after && html`<span class="bar-note">after ${label(step.retrying_after)}</span>`}
              ${step.error && html`<span class="bar-note wrong">${step.error}</span>`}
            </td>
          </tr>`;
        })}
      </tbody>
    </table>
  </div>`;
}
