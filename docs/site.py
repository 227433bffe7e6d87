"""What the site of these pages (`make docs`) does with links to what is not in docs/: pictures come along, and links to
files such as recipes lead to the `repo_url` of mkdocs.yml; without one their text stands alone."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(((?:\.\./)+[^()\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    root = Path(config.docs_dir).parent
    for page in files.documentation_pages():
        for picture, _, target in LINK.findall(page.content_string):
            path = resolved(page, target)
            if picture and not path.startswith("docs/") and path not in files.src_uris:
                files.append(File.generated(config, path, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    def follow(link: re.Match[str]) -> str:
        picture, text, target = link.groups()
        path = resolved(page.file, target)
        if path.startswith("docs/"):
            return link[0]
        if picture:
            return f"![{text}]({posixpath.relpath(path, posixpath.dirname(page.file.src_uri) or '.')})"
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path})" if config.repo_url else text

    return LINK.sub(follow, markdown)


def resolved(page: Any, target: str) -> str:
    """The target of a link of this page, relative to the repository."""
    return posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.src_uri), target))
