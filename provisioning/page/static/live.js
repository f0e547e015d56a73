// What comes from the service by itself: one stream of events for the page, mended when it breaks.
//
// `live.status` is "connecting", "live", "polling" (the service answers, its stream does not), "lost", or "locked" (it
// wants a log-in; nothing is asked any more until the page is loaded again). Whoever
// shows something asks again when `epoch` changes: then events were missed. Without the stream all is polled.
import { get } from "./api.js";
import { useCallback, useEffect, useRef, useState } from "./vendor/preact/hooks.module.js";

const TOPICS = "rollouts,devices,fleets,runs";
const EVENTS = ["devices", "rollout", "run", "fleet"];
const POLL_MS = 2000;
const RARE_MS = 15000;
const SILENT_MS = 40000;
const PATIENCE_MS = 30000;
const REST_AFTER_MS = 60000;
const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 5000;

class Live {
  constructor() {
    this.status = "connecting";
    this.epoch = 0;
    this.listeners = new Map(EVENTS.map((name) => [name, new Set()]));
    this.watchers = new Set();
    this.source = null;
    this.lastId = null;
    this.life = null;
    this.retryMs = FIRST_RETRY_MS;
    this.heardAt = 0;
  }

  start() {
    this.connect();
    addEventListener("online", () => this.source === null && this.status !== "locked" && this.connect());
    document.addEventListener("visibilitychange", () => this.seen());
    // A stream may die without a word: comments every 15 s are not seen here, but a dead service answers no ping.
    setInterval(() => {
      if (this.status === "live" && Date.now() - this.heardAt > SILENT_MS) this.ping();
    }, 10000);
  }

  /** A browser has six connections for a service, whatever its tabs: one that nobody looks at keeps none. */
  seen() {
    clearTimeout(this.rest);
    if (document.visibilityState === "hidden") {
      this.rest = setTimeout(() => {
        clearTimeout(this.timer);
        this.source?.close();
        this.source = null;
        this.become("polling");
      }, REST_AFTER_MS);
    } else if (this.source === null && this.status !== "locked") this.connect();
  }

  connect() {
    clearTimeout(this.timer);
    this.source?.close();
    const resume = this.lastId === null ? "" : `&last_event_id=${encodeURIComponent(this.lastId)}`;
    const source = new EventSource(`/api/events?topics=${TOPICS}${resume}`);
    this.source = source;
    source.addEventListener("hello", (event) => {
      const { service } = JSON.parse(event.data);
      // Events between two connections come again by their ids; those of another life of the service can't.
      const missed = this.life !== null && (this.life !== service || this.lastId === null);
      this.life = service;
      this.heard(event);
      this.retryMs = FIRST_RETRY_MS;
      if (missed || this.status !== "live") this.become("live", true);
      // Opened behind another tab, or found again while nobody looked.
      if (document.visibilityState === "hidden") this.seen();
    });
    source.addEventListener("reset", (event) => {
      this.heard(event);
      this.become("live", true);
    });
    for (const name of EVENTS) {
      source.addEventListener(name, (event) => {
        this.heard(event);
        const data = JSON.parse(event.data);
        for (const listener of this.listeners.get(name)) listener(data);
      });
    }
    source.onerror = () => {
      source.close();
      if (this.source === source) this.lose();
    };
  }

  heard(event) {
    this.heardAt = Date.now();
    if (event.lastEventId) this.lastId = event.lastEventId;
  }

  async ping() {
    const { source } = this;
    try {
      await get("/api/health", { signal: AbortSignal.timeout(5000) });
      this.heardAt = Date.now();
    } catch {
      if (source === null || this.source !== source) return;
      source.close();
      this.lose();
    }
  }

  async lose() {
    this.source = null;
    let answers = true;
    let locked = false;
    try {
      await get("/api/health", { signal: AbortSignal.timeout(5000) });
    } catch (error) {
      answers = false;
      locked = error.status === 401;
    }
    // Meanwhile the page may have been looked at again, or be online: then there is another stream, which tells.
    if (this.source !== null) return;
    if (locked) {
      this.become("locked");
      return;
    }
    if (answers) this.become("polling", this.status === "lost");
    else this.become("lost");
    if (document.visibilityState === "hidden" && this.status === "polling") return;
    this.timer = setTimeout(() => this.connect(), this.retryMs);
    this.retryMs = Math.min(this.retryMs * 2, LAST_RETRY_MS);
  }

  become(status, anew = false) {
    if (anew) this.epoch += 1;
    if (status === this.status && !anew) return;
    this.status = status;
    for (const watcher of this.watchers) watcher();
  }

  on(name, listener) {
    this.listeners.get(name).add(listener);
    return () => this.listeners.get(name).delete(listener);
  }
}

export const live = new Live();

/** The connection as it is; the view is drawn again when it changes. */
export function useLive() {
  const [, redraw] = useState(0);
  useEffect(() => {
    const watcher = () => redraw((n) => n + 1);
    live.watchers.add(watcher);
    return () => live.watchers.delete(watcher);
  }, []);
  return { status: live.status, epoch: live.epoch };
}

/** Have `listener` called with each event of a name while the view is there. */
export function useEvent(name, listener) {
  const latest = useRef(listener);
  latest.current = listener;
  useEffect(() => live.on(name, (data) => latest.current(data)), [name]);
}

/**
 * What GET `path` says, asked again after events that `on` maps to whether they are about it: { rollout: (data) =>
 * data.rollout_id === id }. `minimumMs` lies between two askings. The last good answer stays while there is an error.
 */
export function useQuery(path, { on = {}, minimumMs = 1000, fetcher = get } = {}) {
  const { status, epoch } = useLive();
  const [answer, setAnswer] = useState({ path: null, data: null, error: null });
  const state = useRef({ timer: null, askedAt: 0, abort: null, again: false });
  const relevant = useRef(on);
  relevant.current = on;

  const ask = useCallback(async () => {
    const mine = state.current;
    clearTimeout(mine.timer);
    mine.timer = null;
    mine.again = false;
    mine.abort?.abort();
    mine.abort = null;
    if (path === null) return;
    const abort = new AbortController();
    mine.abort = abort;
    mine.askedAt = Date.now();
    try {
      const data = await fetcher(path, { signal: abort.signal });
      if (!abort.signal.aborted) setAnswer({ path, data, error: null });
    } catch (error) {
      if (error.name === "AbortError" || abort.signal.aborted) return;
      setAnswer((before) => ({ path, data: before.path === path ? before.data : null, error }));
    }
    if (abort.signal.aborted) return;
    mine.abort = null;
    if (mine.again) mine.timer = setTimeout(ask, Math.max(0, mine.askedAt + minimumMs - Date.now()));
  }, [path]);

  // An answer that takes long is waited for, and then asked for again: cut off by each event, none would ever come.
  const askSoon = useCallback(() => {
    const mine = state.current;
    if (mine.abort !== null && Date.now() - mine.askedAt < PATIENCE_MS) mine.again = true;
    else if (mine.timer === null)
      mine.timer = setTimeout(ask, Math.max(0, mine.askedAt + minimumMs - Date.now()));
  }, [ask]);

  useEffect(() => {
    ask();
    const off = EVENTS.map((name) =>
      live.on(
        name,
        (data) => relevant.current[name] !== undefined && relevant.current[name](data) && askSoon(),
      ),
    );
    return () => {
      off.forEach((stop) => stop());
      clearTimeout(state.current.timer);
      state.current.timer = null;
      state.current.abort?.abort();
    };
  }, [ask, epoch]);

  useEffect(() => {
    if (status === "lost" || status === "locked") return undefined;
    const timer = setInterval(
      () => {
        const seldom = document.visibilityState === "hidden" && Date.now() - state.current.askedAt < RARE_MS;
        if (!seldom) askSoon();
      },
      status === "live" ? RARE_MS : POLL_MS,
    );
    return () => clearInterval(timer);
  }, [askSoon, status]);

  const current = answer.path === path ? answer : { data: null, error: null };
  return { data: current.data, error: current.error, reload: ask };
}
