"""An HTML page as its elements, scripts and text; and a name that would be markup."""

from html.parser import HTMLParser

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Elements(HTMLParser):
    """Counts elements and keeps the text of scripts apart from what people read."""

    def __init__(self):
        super().__init__()
        self.tags, self.scripts, self.text, self.attributes = [], [], "", []
        self.inside = None

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.text += data


def read(path):
    page = Elements()
    page.feed(path.read_text(encoding="utf-8"))
    return page
