"""What the site shows differently from the files: Sphinx roles in docstrings, links out of docs/."""

import re

# As rendered: :func:<code>taf_fast.ops.frame_cam</code>.
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<code>~?([\w.]+)</code>")

# The site holds docs/ alone.
_LINK_OUT = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")


def on_page_markdown(markdown, **_):
    """A link to a file outside docs/ becomes the file's path in the repository."""
    return _LINK_OUT.sub(r"\1 (`\2` in the repository)", markdown)


def on_page_content(html, **_):
    """A role becomes a link if the page describes what it names, and code otherwise."""
    described = set(re.findall(r'id="(taf_fast\.[\w.]+)"', html))

    def link(role):
        name = role[1]
        found = {name} & described or {path for path in described if path.endswith(f".{name}")}
        shown = f"<code>{name}</code>"
        return f'<a href="#{found.pop()}">{shown}</a>' if len(found) == 1 else shown

    return _ROLE.sub(link, html)
