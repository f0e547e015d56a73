// Charts over time, by uPlot: what its series are, and that they have the theme's colours.
import uPlot from "./vendor/uplot/uPlot.esm.js";
import { duration, number } from "./format.js";
import { colour } from "./states.js";
import { html, useEffect, useLayoutEffect, useRef } from "./ui.js";

const HEIGHT = 150;

function clock(at) {
  return new Date(at * 1000).toLocaleTimeString("en-GB");
}

/**
 * `series`: [{ name, values, colour: "--state-…", fill, dash, points }]; `times` in seconds since the epoch. `format` writes a
 * value, `summary` says in a sentence what the chart shows.
 */
export function Chart({ title, times, series, format, summary }) {
  const place = useRef(null);
  const chart = useRef(null);
  const data = [times, ...series.map(({ values }) => values)];
  const names = series.map(({ name }) => name).join();
  const latest = useRef(data);
  latest.current = data;

  useLayoutEffect(() => {
    const make = () => {
      chart.current?.destroy();
      const axis = {
        stroke: colour("--muted"),
        grid: { stroke: colour("--line"), width: 1 },
        ticks: { show: false },
        font: "11px system-ui, sans-serif",
      };
      chart.current = new uPlot(
        {
          width: place.current.clientWidth,
          height: HEIGHT,
          legend: { show: true, live: true },
          cursor: { y: false, points: { size: 6 } },
          scales: { y: { range: (_, low, high) => [0, Math.max(high ?? 0, 0.001) * 1.08] } },
          axes: [
            { ...axis, space: 70, size: 26, values: (_, splits) => splits.map(clock) },
            { ...axis, size: 54, values: (_, splits) => splits.map(format) },
          ],
          series: [
            { label: "at", value: (_, at) => (at == null ? "–" : clock(at)) },
            ...series.map((one) => ({
              label: one.name,
              stroke: colour(one.colour),
              fill: one.fill ? `${colour(one.colour)}22` : undefined,
              width: 1.6,
              dash: one.dash,
              points: one.points ? {} : { show: false },
              value: (_, value) => (value == null ? "–" : format(value)),
            })),
          ],
        },
        latest.current,
        place.current,
      );
    };
    make();
    const observer = new ResizeObserver(() =>
      requestAnimationFrame(() => {
        if (place.current) chart.current.setSize({ width: place.current.clientWidth, height: HEIGHT });
      }),
    );
    observer.observe(place.current);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", make);
    addEventListener("muster-theme", make);
    return () => {
      observer.disconnect();
      dark.removeEventListener("change", make);
      removeEventListener("muster-theme", make);
      chart.current?.destroy();
      chart.current = null;
    };
  }, [names]);

  useEffect(() => chart.current?.setData(latest.current), [times]);

  return html`<figure class="chart">
    <figcaption><b>${title}</b> <span class="faint">${summary}</span></figcaption>
    <div ref=${place} class="chart-place"></div>
  </figure>`;
}

const ENDS = ["provisioned", "failed", "timed_out", "rejected", "cancelled"];

/** Throughput, latency and what is in flight, from the service's series. */
export function SeriesCharts({ series }) {
  const begin = new Date(series.from).getTime() / 1000;
  const length = Math.max(
    0,
    ...Object.values(series.ended).map((values) => values.length),
    series.device_s.p50.length,
  );
  const times = Array.from({ length }, (_, i) => begin + i * series.step_s);
  const rates = ENDS.filter((state) => series.ended[state]?.some((n) => n > 0)).map((state) => ({
    name: state.replace("_", " "),
    values: series.ended[state].map((n) => n / series.step_s),
    colour: `--state-${state.replace("_", "-")}`,
    fill: true,
  }));
  const peak = Math.max(0, ...rates.flatMap(({ values }) => values));
  const p95 = series.device_s.p95.filter((value) => value != null).at(-1);
  return html`<div class="charts">
    <${Chart}
      title="Devices ended per second"
      times=${times}
      series=${rates.length > 0 ? rates : [{ name: "provisioned", values: times.map(() => 0), colour: "--state-provisioned" }]}
      format=${(value) => number(value, value < 10 && value % 1 !== 0 ? 1 : 0)}
      summary=${`at most ${number(peak, 1)} a second`}
    />
    <${Chart}
      title="Time per device"
      times=${times}
      series=${[
        { name: "half of them", values: series.device_s.p50, colour: "--accent", points: true },
        {
          name: "95 %",
          values: series.device_s.p95,
          colour: "--state-timed-out",
          dash: [5, 3],
          points: true,
        },
      ]}
      format=${duration}
      summary=${p95 == null ? "none has ended" : `95 % within ${duration(p95)} of late`}
    />
    ${
      series.in_flight &&
      html`<${Chart}
      title="In flight"
      times=${times}
      series=${[{ name: "devices", values: series.in_flight, colour: "--state-downloading", fill: true }]}
      format=${(value) => number(value)}
      summary=${`at most ${number(Math.max(0, ...series.in_flight.map((n) => n ?? 0)))} at once`}
    />`
    }
  </div>`;
}
