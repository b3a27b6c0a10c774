// The way to the gateway: the key of this tab, questions, and the stream that is opened again whenever it ends.

const KEY = "fairlead-admin-key";
const SILENCE_MS = 12000; // the gateway speaks every second, unless its keeper is busy
const LONGEST_WAIT_MS = 10000;

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function get(path, signal) {
  const answer = await fetch(path, { headers: { authorization: `Bearer ${key.get()}` }, cache: "no-store", signal });
  if (answer.ok) return answer;
  const document = await answer.json().catch(() => null);
  throw new Refused(answer.status, document?.error?.message ?? `the gateway answered ${answer.status}`);
}

export async function ask(path) {
  return (await get(path)).json();
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Until the key is refused. `on.event(kind, document)`, `on.state(live, sentence)`.
export async function follow(on) {
  for (let attempt = 0; ; attempt += 1) {
    const stop = new AbortController();
    let watch = setTimeout(() => stop.abort(), SILENCE_MS);
    try {
      const answer = await get("v1/fairlead/live", stop.signal);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        clearTimeout(watch);
        watch = setTimeout(() => stop.abort(), SILENCE_MS);
        rest += value;
        const events = rest.split("\n\n");
        rest = events.pop();
        for (const event of events) {
          const [kind, data] = event.split("\n").map((line) => line.slice(line.indexOf(": ") + 2));
          on.event(kind, JSON.parse(data));
          attempt = 0;
          on.state(true, "live");
        }
      }
    } catch (error) {
      if (error instanceof Refused && [401, 403].includes(error.status)) throw error;
      if (error instanceof SyntaxError) console.error(error);
    } finally {
      clearTimeout(watch);
      stop.abort();
    }
    const wait = Math.min(LONGEST_WAIT_MS, 1000 * 2 ** attempt);
    on.state(false, `connection lost; trying again in ${wait / 1000} s`);
    await pause(wait);
  }
}
