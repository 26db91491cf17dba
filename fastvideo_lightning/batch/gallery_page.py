"""The template of a gallery: a page for Jinja, which escapes what people typed."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}: {{ total }} video{{ "" if total == 1 else "s" }}</title>
<style>
:root { color-scheme: light dark; --edge: #ccc; --soft: #595959; --card: #fff; --bad: #a00; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 90rem;
       padding: 0 1rem; color: #222; background: #f6f6f6; }
@media (prefers-color-scheme: dark) {
  :root { --edge: #444; --soft: #aaa; --card: #222; --bad: #f88; }
  body { color: #eee; background: #161616; }
}
h1 { overflow-wrap: anywhere; margin: 0 0 .5rem; }
label { display: block; margin: 0 0 1rem; }
input { font: inherit; padding: .35rem .5rem; width: 20rem; max-width: 100%;
        box-sizing: border-box; }
main { display: grid; gap: 1rem; align-items: start;
       grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); }
article { background: var(--card); border: 1px solid var(--edge); border-radius: .4rem;
          padding: .7rem; min-width: 0; overflow-wrap: anywhere;
          content-visibility: auto; contain-intrinsic-size: auto 20rem; }
video, img { width: 100%; aspect-ratio: 16 / 9; object-fit: contain; background: #000;
             border-radius: .2rem; display: block; }
h2 { font-size: 1rem; font-weight: 600; margin: .5rem 0 0; max-height: 6em; overflow-y: auto; }
p { margin: .2rem 0; }
.soft { color: var(--soft); }
.bad { color: var(--bad); }
summary { cursor: pointer; padding: .25rem 0; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 0 .8rem; margin: .3rem 0; }
dt { color: var(--soft); }
dd { margin: 0; }
pre { white-space: pre-wrap; border: 1px solid var(--edge); padding: .5rem; margin: .3rem 0;
      border-radius: .2rem; font-size: .85rem; }
button { font: inherit; padding: .2rem .7rem; }
</style>
</head>
<body>
<h1>{{ name }}</h1>
<label>Find by prompt or file name<br><input type="search" id="filter"></label>
<main>
{% for card in cards %}
<article>
{% if card.entry.file.endswith(".png") %}
<a href="{{ card.address }}"><img alt="{{ card.entry.prompt }}" loading="lazy"
 src="{{ "data:image/webp;base64," ~ card.thumbnail if card.thumbnail else card.address }}"></a>
{% else %}
<video controls loop playsinline preload="none" aria-label="{{ card.entry.prompt }}"
 {% if card.thumbnail %}poster="data:image/webp;base64,{{ card.thumbnail }}"{% endif %}
 src="{{ card.address }}"></video>
{% endif %}
<h2 dir="auto" tabindex="0">{{ card.entry.prompt }}</h2>
<p class="soft">{{ card.line }}</p>
<p><a href="{{ card.address }}">{{ card.entry.file }}</a></p>
<details><summary>Make this one again</summary>
<pre>{{ card.command }}</pre>
{% if card.adapters %}
<p>It had adapters: {{ card.adapters }}. Add <code>--lora FILE</code> for each.</p>
{% endif %}
<button type="button">Copy</button></details>
<details><summary>Settings</summary><dl>
{% for name, value in card.settings.items() %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl></details>
</article>
{% endfor %}
</main>
{% if failed %}
<h2>Failed</h2>
{% for entry in failed %}
<p class="bad"><b dir="auto">{{ entry.prompt }}</b>, seed {{ entry.seed }}: {{ entry.error }}</p>
{% endfor %}
{% endif %}
<script>
const cards = [...document.querySelectorAll("article")];
document.getElementById("filter").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  for (const card of cards) {
    const texts = [card.querySelector("h2"), card.querySelector("p a")].map((e) => e.textContent);
    card.hidden = !texts.some((text) => text.toLowerCase().includes(wanted));
  }
});
document.querySelector("main").addEventListener("click", async (event) => {
  if (event.target.tagName !== "BUTTON") return;
  const command = event.target.parentElement.querySelector("pre");
  try {
    await navigator.clipboard.writeText(command.textContent);
    event.target.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(command);
    event.target.textContent = "Selected: press Ctrl-C";
  }
});
</script>
</body>
</html>
"""
