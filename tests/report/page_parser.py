"""A strict parser of pages: tags close in order; links and their targets are collected."""

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "link", "input"}
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")


class Page(HTMLParser):
    """``tables`` by caption: the last line of the header and the rows, as texts."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict]] = []
        self.headings: list[tuple[int, str]] = []
        self.sentences: list[str] = []
        self.tables: dict[str, tuple[list[str], list[list[str]]]] = {}
        self.styles = ""
        self.caption = ""
        self.declarations: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_decl(self, decl):
        self.declarations.append(decl)

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in (*HEADINGS, "p", "b", "th", "td"):
            self.text = ""
        if tag == "tr":
            self.row: list[str] = []
        if tag == "thead":
            self.header: list[str] = []
        if tag == "tbody":
            self.rows: list[list[str]] = []

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()
        if tag in HEADINGS:
            self.headings.append((int(tag[1]), self.text))
        elif tag == "p":
            self.sentences.append(self.text)
        elif tag == "b":
            self.caption = self.text
        elif tag in ("th", "td"):
            self.row.append(self.text)
        elif tag == "tr" and "thead" in self.open:
            self.header = self.row
        elif tag == "tr":
            self.rows.append(self.row)
        elif tag == "table":
            self.tables.setdefault(self.caption, (self.header, self.rows))

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.styles += data
        self.text += data
