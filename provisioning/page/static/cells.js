// A cell per device on a canvas: ten thousand of them are one element, and only what has changed is drawn again.
import { STATES, colour, label } from "./states.js";
import { number } from "./format.js";
import {
  Sign,
  announce,
  html,
  useCallback,
  useEffect,
  useLayoutEffect,
  useMemo,
  useRef,
  useState,
} from "./ui.js";

const LARGEST = 22;
const SMALLEST = 6;
const WITH_SIGN = 11;
const PREFERRED_HEIGHT = 300;
const MAX_RATIO = 2;

/** The devices as cells: ids in their order, a code for each, and what the codes mean. */
export class Cells {
  constructor({ states, ids, codes }) {
    this.states = states;
    this.ids = ids;
    this.codes = decode(codes);
    this.codeOf = new Map(states.map((state, code) => [state, code]));
    this.placeOf = new Map(ids.map((id, place) => [id, place]));
    this.counts = count(this.codes, states.length);
    this.dirty = new Set();
    this.drawn = new Set();
  }

  /** A device has another state. False where it is none of these. */
  set(id, state) {
    const place = this.placeOf.get(id);
    const code = this.codeOf.get(state);
    if (place === undefined || code === undefined) return false;
    if (this.codes[place] !== code) {
      this.counts[this.codes[place]] -= 1;
      this.counts[code] += 1;
      this.codes[place] = code;
      this.dirty.add(place);
    }
    return true;
  }

  /** All codes as they are now; false where they are of other devices. */
  replace(codes) {
    const fresh = decode(codes);
    if (fresh.length !== this.codes.length) return false;
    for (let place = 0; place < fresh.length; place += 1) {
      if (fresh[place] !== this.codes[place]) this.dirty.add(place);
    }
    this.codes = fresh;
    this.counts = count(fresh, this.states.length);
    return true;
  }

  stateAt(place) {
    return this.states[this.codes[place]];
  }
}

function decode(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

function count(codes, states) {
  const counts = new Array(states).fill(0);
  for (const code of codes) counts[code] += 1;
  return counts;
}

/** How large cells are, so that so many fit; and where each is. */
export function layout(width, cells) {
  let size = Math.floor(Math.sqrt((width * PREFERRED_HEIGHT) / Math.max(cells, 1)));
  size = Math.max(SMALLEST, Math.min(LARGEST, size));
  const columns = Math.max(1, Math.floor(width / size));
  return { size, columns, rows: Math.ceil(cells / columns), gap: size >= 8 ? 2 : 1 };
}

class Painter {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.paths = new Map();
  }

  readColours(states) {
    this.colours = states.map((state) => colour(`--state-${state.replaceAll("_", "-")}`));
    this.inks = states.map((state) => colour(`--ink-${STATES[state]?.final ? "final" : "work"}`));
    this.paper = colour("--surface");
    this.focus = colour("--text");
    this.paths = states.map((state) => new Path2D(STATES[state]?.path ?? ""));
  }

  resize(width, cells) {
    this.shape = layout(width, cells);
    const ratio = Math.min(devicePixelRatio || 1, MAX_RATIO);
    const height = Math.max(this.shape.rows * this.shape.size, this.shape.size);
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.canvas.style.height = `${height}px`;
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
  }

  drawAll(cells, filter) {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    for (let place = 0; place < cells.codes.length; place += 1) this.draw(cells, place, filter, true);
  }

  draw(cells, place, filter, clean = false) {
    const { size, columns, gap } = this.shape;
    const x = (place % columns) * size;
    const y = Math.floor(place / columns) * size;
    const code = cells.codes[place];
    const { context } = this;
    if (!clean) context.clearRect(x, y, size, size);
    context.globalAlpha = filter === null || filter.has(cells.states[code]) ? 1 : 0.13;
    context.fillStyle = this.colours[code];
    const inner = size - gap;
    context.fillRect(x, y, inner, inner);
    if (size >= WITH_SIGN && STATES[cells.states[code]]?.final) {
      const scale = (inner * 0.72) / 10;
      context.save();
      context.translate(x + inner * 0.14, y + inner * 0.14);
      context.scale(scale, scale);
      context.fillStyle = this.inks[code];
      context.fill(this.paths[code], "evenodd");
      context.restore();
    }
    context.globalAlpha = 1;
  }

  ring(place) {
    const { size, columns, gap } = this.shape;
    const { context } = this;
    context.strokeStyle = this.focus;
    context.lineWidth = 2;
    context.strokeRect((place % columns) * size, Math.floor(place / columns) * size, size - gap, size - gap);
  }

  hit(x, y, cells) {
    const { size, columns } = this.shape;
    const column = Math.floor(x / size);
    const place = Math.floor(y / size) * columns + column;
    return column >= 0 && column < columns && place >= 0 && place < cells ? place : null;
  }
}

/** The cells with their legend. `version` changes when cells have; `open(id)` is called for the one that is chosen. */
export function CellMap({ cells, version, open, name }) {
  const canvas = useRef(null);
  const painter = useRef(null);
  const [filter, setFilter] = useState(null);
  const [place, setPlace] = useState(null);
  const [tip, setTip] = useState(null);
  const focused = useRef(false);
  const shown = useRef({});
  shown.current = { cells, filter, place };

  const repaint = useCallback(() => {
    const now = shown.current;
    painter.current.drawAll(now.cells, now.filter);
    now.cells.dirty.clear();
    if (focused.current && now.place !== null) painter.current.ring(now.place);
  }, []);

  useLayoutEffect(() => {
    const paint = new Painter(canvas.current);
    painter.current = paint;
    const fit = () => {
      if (canvas.current === null) return; // gone before its frame came
      paint.resize(canvas.current.parentElement.clientWidth, cells.ids.length);
      repaint();
    };
    paint.readColours(cells.states);
    fit();
    const restyle = () => {
      paint.readColours(cells.states);
      repaint();
    };
    const observer = new ResizeObserver(() => requestAnimationFrame(fit));
    observer.observe(canvas.current.parentElement);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", restyle);
    addEventListener("muster-theme", restyle);
    return () => {
      observer.disconnect();
      dark.removeEventListener("change", restyle);
      removeEventListener("muster-theme", restyle);
    };
  }, [cells]);

  useEffect(() => painter.current && repaint(), [filter, place]);

  useEffect(() => {
    const frame = requestAnimationFrame(() => {
      const { cells: now, filter: by, place: at } = shown.current;
      for (const changed of now.dirty) painter.current.draw(now, changed, by);
      if (focused.current && at !== null && now.dirty.has(at)) painter.current.ring(at);
      now.dirty.clear();
    });
    return () => cancelAnimationFrame(frame);
  }, [version]);

  const at = (event) => {
    const box = canvas.current.getBoundingClientRect();
    const found = painter.current.hit(event.clientX - box.left, event.clientY - box.top, cells.ids.length);
    return found === null ? null : { place: found, x: event.clientX - box.left, y: event.clientY - box.top };
  };

  const matches = (candidate) => filter === null || filter.has(cells.stateAt(candidate));
  const move = (step, from) => {
    // Among what is filtered, so that the keyboard finds the three failed ones of ten thousand.
    let next = from;
    do next += step;
    while (next >= 0 && next < cells.ids.length && !matches(next));
    return next >= 0 && next < cells.ids.length ? next : from;
  };
  const keyed = (event) => {
    const { columns } = painter.current.shape;
    const from = place ?? -1;
    const steps = {
      ArrowRight: () => move(1, from),
      ArrowLeft: () => move(-1, from),
      ArrowDown: () => (filter === null ? Math.min(from + columns, cells.ids.length - 1) : move(1, from)),
      ArrowUp: () => (filter === null ? Math.max(from - columns, 0) : move(-1, from)),
      Home: () => move(1, -1),
      End: () => move(-1, cells.ids.length),
    };
    if (event.key === "Enter" || event.key === " ") {
      if (place !== null) open(cells.ids[place]);
      event.preventDefault();
    } else if (steps[event.key]) {
      event.preventDefault();
      const next = steps[event.key]();
      if (next < 0 || !cells.ids.length) return;
      setPlace(next);
      announce(`${cells.ids[next]}, ${label(cells.stateAt(next))}`);
      const { size } = painter.current.shape;
      setTip({ place: next, x: (next % columns) * size + size, y: Math.floor(next / columns) * size + size });
    }
  };

  return html`<div class="cells">
    <${Legend} cells=${cells} filter=${filter} setFilter=${setFilter} />
    <div class="cells-area">
      <canvas
        ref=${canvas}
        tabindex="0"
        role="application"
        aria-roledescription="map of devices"
        aria-label=${`${name}: ${number(cells.ids.length)} devices. Arrow keys go from one to the next, Enter opens it.`}
        onPointerMove=${(event) => setTip(at(event))}
        onPointerLeave=${() => setTip(null)}
        onClick=${(event) => {
          const found = at(event);
          if (found) open(cells.ids[found.place]);
        }}
        onKeyDown=${keyed}
        onFocus=${() => {
          focused.current = canvas.current.matches(":focus-visible");
          repaint();
        }}
        onBlur=${() => {
          focused.current = false;
          setTip(null);
          repaint();
        }}
      ></canvas>
      ${tip && html`<${Tip} cells=${cells} tip=${tip} width=${canvas.current?.clientWidth ?? 0} />`}
    </div>
  </div>`;
}

function Tip({ cells, tip, width }) {
  const state = cells.stateAt(tip.place);
  const beyond = tip.x > width / 2;
  return html`<div
    class="tip"
    aria-hidden="true"
    style=${{ top: `${tip.y + 10}px`, [beyond ? "right" : "left"]: `${(beyond ? width - tip.x : tip.x) + 8}px` }}
  >
    <b>${cells.ids[tip.place]}</b> <${Sign} state=${state} /> ${label(state)}
  </div>`;
}

/** Which states there are, how many of each, and which are shown. */
function Legend({ cells, filter, setFilter }) {
  const order = useMemo(
    () => [...cells.states].filter((s) => STATES[s]).sort((a, b) => STATES[a].place - STATES[b].place),
    [cells],
  );
  const toggle = (state) => {
    const next = new Set(filter ?? []);
    if (!next.delete(state)) next.add(state);
    setFilter(next.size === 0 ? null : next);
  };
  return html`<div class="legend" role="group" aria-label="Show states">
    ${order.map((state) => {
      const n = cells.counts[cells.codeOf.get(state)];
      const pressed = filter?.has(state) ?? false;
      return html`<button
        type="button"
        key=${state}
        class=${n === 0 ? "chip none" : "chip"}
        aria-pressed=${pressed}
        onClick=${() => toggle(state)}
      >
        <${Sign} state=${state} />${label(state)} <b>${number(n)}</b>
      </button>`;
    })}
    <button type="button" class="quiet" disabled=${filter === null}
      onClick=${() => setFilter(null)}>All</button>
  </div>`;
}
