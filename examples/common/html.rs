//! Pages that need no other file.

use maud::{DOCTYPE, Markup, html};

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1300px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.6em } h2 { font-size: 1.2em; margin-top: 2em }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
code { background: #f3f3f3; padding: .1em .3em; overflow-wrap: anywhere }
pre { background: #f3f3f3; padding: .5em; overflow-x: auto }
svg { max-width: 100%; height: auto }
figure { display: inline-block; margin: 0 .5em 1em 0; text-align: center; vertical-align: top; width: 84px }
figure img { width: 72px; image-rendering: pixelated; border: 4px solid #ccc }
figure img.right { border-color: #009e73 } figure img.wrong { border-color: #d55e00 }
figcaption { font-size: 12px; line-height: 1.25 }
.note { color: #666; max-width: 50em }
";

/// A page of a title and what follows it.
pub fn page(title: &str, body: &Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (maud::PreEscaped(STYLE)) }
            }
            body { h1 { (title) } (body) }
        }
    }
    .into_string()
}
