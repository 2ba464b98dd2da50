// Browsers start no worker from a page that was opened from a disk. This one runs the worker's
// script in a frame that is not shown, so that the search works there too.
if (location.protocol === "file:") {
  // The search asks for this name where it looks for its own files.
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = null;
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = "<!doctype html><html><body></body></html>";
      this.ready = new Promise((resolve) => {
        this.frame.addEventListener("load", () => this.start(url, resolve), { once: true });
      });
      document.body.append(this.frame);
    }

    start(url, resolve) {
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => {
        const message = new MessageEvent("message", { data });
        this.onmessage?.(message);
        this.dispatchEvent(message);
      };
      const load = (address) =>
        new Promise((loaded) => {
          const script = inside.document.createElement("script");
          script.src = address;
          script.onload = loaded;
          inside.document.body.append(script);
        });
      inside.importScripts = (...addresses) =>
        addresses.reduce((before, address) => before.then(() => load(address)), Promise.resolve());
      load(url).then(resolve);
    }

    postMessage(data) {
      this.ready.then(() => {
        const inside = this.frame.contentWindow;
        inside.dispatchEvent(new inside.MessageEvent("message", { data }));
      });
    }

    terminate() {
      this.frame.remove();
    }
  };
}
