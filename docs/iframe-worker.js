// Opened from disk, a page may not start a worker: the one of the search then runs in a hidden frame of the page.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.srcdoc =
        `<script>self.postMessage = message => parent.postMessage(message, "*")</script><script src="${url}"></script>`
      this.ready = new Promise(done => this.frame.addEventListener("load", done))
      this.answer = event => {
        if (event.source !== this.frame.contentWindow) return
        const message = new MessageEvent("message", { data: event.data })
        this.dispatchEvent(message)
        this.onmessage?.(message)
      }
      window.addEventListener("message", this.answer)
      document.body.append(this.frame)
    }
    async postMessage(data) {
      await this.ready
      this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }))
    }
    terminate() {
      window.removeEventListener("message", this.answer)
      this.frame.remove()
    }
  }
}
