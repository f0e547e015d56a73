// Cells that follow the stream, and are compared with the service's from time to time.
import { getWhole } from "./api.js";
import { Cells } from "./cells.js";
import { live, useEvent, useLive } from "./live.js";
import { useEffect, useRef, useState } from "./ui.js";

const COMPARE_MS = 10000;
const POLL_MS = 2000;
const SOON_MS = 500;

/** The cells at `address`; of the devices of a run, or of all where there is none. */
export function useCells(address, runId = null) {
  const { status, epoch } = useLive();
  const [shown, setShown] = useState({ cells: null, version: 0, error: null });
  const cells = useRef(null);
  const etag = useRef(null);
  const life = useRef(null);
  const compareSoon = useRef(() => undefined);

  useEffect(() => {
    let gone = false;
    let timer = null;
    let soon = false;
    const load = async () => {
      clearTimeout(timer);
      soon = false;
      try {
        // The ids of ten thousand devices are asked for once, their states again and again.
        // Another life of the service may be of another state directory, with as many other devices.
        const now = live.life;
        const known = cells.current !== null && life.current === now;
        const headers = known && etag.current ? { "If-None-Match": etag.current } : {};
        const answer = await getWhole(known ? `${address}?ids=false` : address, { headers });
        if (gone) return;
        etag.current = known ? answer.headers.get("etag") : null;
        if (answer.data !== null) {
          if (!known || !cells.current.replace(answer.data.codes)) {
            if (known) {
              life.current = undefined;
              load();
              return;
            }
            cells.current = new Cells(answer.data);
            life.current = now;
          }
          setShown(({ version }) => ({ cells: cells.current, version: version + 1, error: null }));
        }
      } catch (error) {
        if (!gone) setShown((before) => ({ ...before, error }));
      }
      if (!gone) timer = setTimeout(load, status === "live" || document.visibilityState === "hidden" ? COMPARE_MS : POLL_MS);
    };
    compareSoon.current = () => {
      if (soon) return;
      soon = true;
      clearTimeout(timer);
      timer = setTimeout(load, SOON_MS);
    };
    load();
    return () => {
      gone = true;
      clearTimeout(timer);
    };
  }, [address, status === "live", epoch]);

  useEvent("devices", ({ devices }) => {
    if (cells.current === null) return;
    let any = false;
    let unknown = false;
    for (const [id, state, run] of devices) {
      if (runId !== null && run !== runId) continue;
      if (cells.current.set(id, state)) any = true;
      else unknown = true;
    }
    // A device that has just registered, or joined: it has a place among the others that only the service knows.
    if (unknown) compareSoon.current();
    if (any) setShown(({ version }) => ({ cells: cells.current, version: version + 1, error: null }));
  });
  return shown;
}
