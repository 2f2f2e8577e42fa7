// One stream of hints for all tabs of a browser: it has six connections to a host, and a stream takes one for as long as it is open.
"use strict";

const tabs = new Set();
let source = null, state = "connecting";

const tell = (word) => tabs.forEach((tab) => tab.postMessage(word));
const become = (word) => { state = word; tell(word); };

function listen() {
  source = new EventSource(self.name);
  source.addEventListener("hello", () => become("live"));
  source.addEventListener("calls", () => tell("calls"));
  source.addEventListener("error", () => become("not connected"));
}

self.addEventListener("connect", ({ ports: [tab] }) => {
  tabs.add(tab);
  tab.onmessage = () => {  // it goes
    tabs.delete(tab);
    if (!tabs.size) { source.close(); state = "connecting"; }
  };
  if (!source || source.readyState === EventSource.CLOSED) listen();
  tab.postMessage(state);
});
