"""Markdown as the page shows it: nodes for what models write, text for everything else."""

from tests.page.browser import Page

RENDER = """
const [text, done] = arguments;
import("/page/markdown.js").then(({ markdown }) => {
  const box = document.createElement("div");
  box.append(...markdown(text));
  box.querySelectorAll("button").forEach((button) => button.remove());
  done(box.innerHTML);
}, (error) => done(String(error)));
"""
CASES = {
    "two lines\nof one paragraph\n\nand another": "<p>two lines\nof one paragraph</p><p>and another</p>",
    "**bold**, *slanted*, ~~gone~~, `a*b*`": (
        "<p><strong>bold</strong>, <em>slanted</em>, <s>gone</s>, <code>a*b*</code></p>"
    ),
    "**bold with *slanted* inside**": "<p><strong>bold with <em>slanted</em> inside</strong></p>",
    "2 * 3 * 4 and snake_case_name and __init__": "<p>2 * 3 * 4 and snake_case_name and <strong>init</strong></p>",
    "a \\* star": "<p>a * star</p>",
    "# Title\ntext": "<h3>Title</h3><p>text</p>",
    "- one\n- two\n  - deeper\n- three": "<ul><li>one</li><li>two<ul><li>deeper</li></ul></li><li>three</li></ul>",
    "3. third\n4. fourth": '<ol start="3"><li>third</li><li>fourth</li></ol>',
    "1. one\n\n   more\n2. two": '<ol start="1"><li>one<p>more</p></li><li>two</li></ol>',
    "> quoted\n> twice": "<blockquote><p>quoted\ntwice</p></blockquote>",
    "---": "<hr>",
    "a | b\n--|--\n1 | 2": (
        '<div class="table" tabindex="0" role="group" aria-label="Table"><table><thead><tr><th>a</th><th>b</th></tr>'
        "</thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table></div>"
    ),
    "```sql\nSELECT *\n  FROM t;\n```\nafter": (
        '<figure class="code"><figcaption><span>sql</span></figcaption><pre tabindex="0" aria-label="Code, sql">'
        "<code>SELECT *\n  FROM t;</code></pre></figure><p>after</p>"
    ),
    "```\nnot closed yet": (
        '<figure class="code"><figcaption><span>code</span></figcaption><pre tabindex="0" aria-label="Code">'
        "<code>not closed yet</code></pre></figure>"
    ),
    "see https://example.org/a.": (
        '<p>see <a href="https://example.org/a" title="https://example.org/a" rel="noopener noreferrer nofollow" '
        'target="_blank">https://example.org/a</a>.</p>'
    ),
    "[x](javascript:alert(1)) [y](file:///etc)": "<p>[x](javascript:alert(1)) [y](file:///etc)</p>",
    "<b>&lt;</b>": "<p>&lt;b&gt;&amp;lt;&lt;/b&gt;</p>",
    "a  \nb": "<p>a<br>b</p>",
}


def test_markdown_becomes_nodes(page: Page, base_url: str) -> None:
    page.open(base_url)
    page.driver.set_script_timeout(20)
    script = page.driver.execute_async_script
    assert {text: script(RENDER, text) for text in CASES} == CASES
