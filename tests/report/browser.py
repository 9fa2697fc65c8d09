"""Load a page in a headless Chromium and print, as JSON, what a reader with that window would meet.

    python browser.py PAGE SCHEME WIDTH [SCREENSHOT]

SCHEME is light or dark, WIDTH the window's in CSS pixels; SCREENSHOT is a PNG file for the whole page.
The process is alone with Qt: a test runs it as a program of its own.
"""

import json
import os
import sys
from pathlib import Path

# Chromium reads these when Qt is imported: no display, no GPU, and 0 is the dark scheme.
os.environ |= {
    "QT_QPA_PLATFORM": "offscreen",
    "QTWEBENGINE_DISABLE_SANDBOX": "1",
    "QTWEBENGINE_CHROMIUM_FLAGS": "--disable-gpu --blink-settings=preferredColorScheme="
    + ("0" if sys.argv[2] == "dark" else "1"),
}

from PyQt6.QtCore import QTimer, QUrl
from PyQt6.QtWebEngineCore import (
    QWebEnginePage,
    QWebEngineProfile,
    QWebEngineSettings,
    QWebEngineUrlRequestInterceptor,
)
from PyQt6.QtWebEngineWidgets import QWebEngineView
from PyQt6.QtWidgets import QApplication

# Measured with all <details> open. Contrast is that of WCAG 2, between a text and the nearest background.
MEASURE = """
(() => {
  for (const part of document.querySelectorAll("details")) part.open = true;
  const rgba = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const background = element => {
    for (; element; element = element.parentElement) {
      const colour = rgba(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const within = (element, test) => {
    for (; element; element = element.parentElement) if (test(getComputedStyle(element))) return true;
    return false;
  };
  const texts = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect(), style = getComputedStyle(element);
    const pair = [light(rgba(style.color)), light(background(element))].sort((a, b) => b - a);
    texts.push({
      text: node.data.trim().slice(0, 40),
      size: parseFloat(style.fontSize),
      contrast: (pair[0] + 0.05) / (pair[1] + 0.05),
      // Beyond the window, and no container of its own to scroll in.
      lost: (box.right > innerWidth + 1 || box.left < -1)
        && !within(element, style => ["auto", "scroll"].includes(style.overflowX)),
    });
  }
  const blocks = [...document.querySelectorAll("main > *, section > *")].filter(e => e.checkVisibility());
  const boxes = blocks.map(e => [e, e.getBoundingClientRect()]);
  const scrolling = [...document.querySelectorAll(".wide")].filter(box => box.scrollWidth > box.clientWidth);
  const apart = (a, b) => a.bottom <= b.top + 1 || b.bottom <= a.top + 1;
  return JSON.stringify({
    inner_width: innerWidth,
    scroll_width: document.scrollingElement.scrollWidth,
    height: document.scrollingElement.scrollHeight,
    smallest_text: Math.min(...texts.map(t => t.size)),
    least_contrast: Math.min(...texts.map(t => t.contrast)),
    lost: texts.filter(t => t.lost).map(t => t.text),
    overlapping: boxes.flatMap(([a, x], i) => boxes.slice(i + 1)
      .filter(([b, y]) => a.parentElement === b.parentElement && !apart(x, y))
      .map(([b]) => a.tagName + " " + b.tagName)),
    images: [...document.images].map(i => (
      {natural: i.naturalWidth, shown: i.width, wanted: Number(i.getAttribute("width")), alt: i.alt})),
    // Boxes that scroll; those in which nothing at the edge says so, or something opaque hides it.
    scrolling: scrolling.length,
    unmarked: scrolling.filter(box => !getComputedStyle(box).backgroundAttachment.endsWith("scroll, scroll")
      || [...box.querySelectorAll("tr, td, img")].some(part => {
        const style = getComputedStyle(part), colour = rgba(style.backgroundColor);
        return part.tagName === "IMG" ? style.mixBlendMode !== "multiply" : colour.length === 3;
      })).map(box => box.getAttribute("aria-label")),
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
  });
})()
"""


class Interceptor(QWebEngineUrlRequestInterceptor):
    """Blocks every request but the first page's own; data: URLs make no request."""

    def __init__(self, own: QUrl):
        super().__init__()
        self.own, self.blocked = own, []

    def interceptRequest(self, info) -> None:
        if info.requestUrl() != self.own and info.requestUrl().scheme() != "data":
            self.blocked.append(info.requestUrl().toString())
            info.block(True)


class Page(QWebEnginePage):
    """Keeps what a page writes to the console."""

    def __init__(self, profile: QWebEngineProfile):
        super().__init__(profile)
        self.console = []

    def javaScriptConsoleMessage(self, level, message, line, source) -> None:
        self.console.append(message)


def main(file: str, _scheme: str, width: str, screenshot: str | None = None) -> None:
    app = QApplication(sys.argv[:1])
    url = QUrl.fromLocalFile(str(Path(file).resolve()))
    interceptor, profile = Interceptor(url), QWebEngineProfile()
    profile.setUrlRequestInterceptor(interceptor)
    page, view = Page(profile), QWebEngineView()
    # As on a phone, where scroll bars take no room.
    page.settings().setAttribute(QWebEngineSettings.WebAttribute.ShowScrollBars, False)
    # Else Chromium drops them before the interceptor sees them.
    page.settings().setAttribute(QWebEngineSettings.WebAttribute.LocalContentCanAccessRemoteUrls, True)
    view.setPage(page)
    view.resize(int(width), 800)
    found = {}

    def measured(result: str) -> None:
        found.update(json.loads(result), blocked=interceptor.blocked, console=page.console)
        if screenshot is None:
            app.quit()
            return
        view.resize(int(width), min(found["height"], 16000))
        QTimer.singleShot(1500, shot)

    def shot() -> None:
        view.grab().save(screenshot)
        app.quit()

    def loaded(whole: bool) -> None:
        found["loaded"] = whole
        page.runJavaScript(MEASURE, measured)

    page.loadFinished.connect(loaded)
    view.show()
    view.load(url)
    app.exec()
    print(json.dumps(found), flush=True)
    os._exit(0)  # Qt's order of destruction at exit is its own


if __name__ == "__main__":
    main(*sys.argv[1:])
