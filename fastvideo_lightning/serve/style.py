"""How the page looks: its colours, in light and in dark, and where things stand."""

from typing import Any

CSS = """
:root { --calm: #57606a; --busy: #1d4ed8; --good: #1a7f37; --bad: #b42318; }
.dark { --calm: #9aa4b2; --busy: #7aa2ff; --good: #56d364; --bad: #ff8a80; }
/* In view beside the form, on a low screen too: `hidden` would keep it from sticking. */
.gradio-container { overflow: clip !important; }
.gradio-container main { max-width: 90rem !important; margin: 0 auto;
  padding: .75rem 1rem 2rem !important; }
#title h1 { display: inline; font-size: 1.25rem; margin: 0 .75rem 0 0; }
#title p { display: inline; overflow-wrap: anywhere; }
#shown, #form { min-width: min(20rem, 100%) !important; }
#shown { gap: .6rem; }
@media (min-width: 48rem) { #shown { position: sticky; top: .5rem; align-self: flex-start; } }
@media (max-width: 47.99rem) {
  .gradio-container, .gradio-container main { padding-inline: .35rem !important; }
  #columns { flex-direction: column; }
  #video { height: auto !important; min-height: 12rem !important; max-height: 60vh; }
}
#buttons button { min-height: 2.75rem; min-width: 0; padding: .4rem; white-space: nowrap; }
#sizes .form, #steps .form { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); }
#sizes label, #steps label { display: flex; flex-direction: column; height: 100%; }
#sizes label input, #steps label input { margin-top: auto; }
button:focus-visible, summary:focus-visible, a:focus-visible, input:focus-visible,
textarea:focus-visible { outline: 3px solid var(--busy) !important; outline-offset: 2px; }

#preview img { width: 100%; height: min(58vh, 62vw, 36rem); object-fit: contain;
  border-radius: .5rem; background: var(--background-fill-secondary); }
#preview p { margin: .2rem 0; font-size: .85em; }
#preview:not(:has(img)), #gallery:not(:has(li)) { display: none; }
#gallery h2 { font-size: 1rem; font-weight: 600; margin: 0 0 .4rem; }
#gallery .made { display: grid; gap: .75rem; padding: 0; margin: 0; list-style: none;
  grid-template-columns: repeat(auto-fill, minmax(min(12rem, 100%), 1fr)); }
#gallery li { padding: .6rem; border: 1px solid var(--border-color-primary); border-radius: .5rem; }
#gallery video { width: 100%; height: 9rem; object-fit: contain; background: #000; }
#gallery p { display: block; margin: .3rem 0; overflow-wrap: anywhere; }
#gallery .detail { font-size: .85em; }
#gallery button { padding: .5rem .8rem; border-radius: .4rem; border: 1px solid var(--calm);
  background: var(--background-fill-primary); color: var(--body-text-color); cursor: pointer; }

.status { padding: .6rem .9rem; border-radius: .5rem;
  border: 1px solid var(--border-color-primary);
  border-left: .4rem solid var(--calm); background: var(--background-fill-secondary); }
.status p { margin: 0; }
.status .detail { font-size: .9em; overflow-wrap: anywhere; }
.status.running { border-left-color: var(--busy); }
.status.done { border-left-color: var(--good); }
.status.failed { border-left-color: var(--bad); }
.status .bar { height: .6rem; margin: .5rem 0 .3rem; border-radius: .3rem; overflow: hidden;
  background: var(--border-color-primary); }
.status .bar div { height: 100%; background: var(--busy); transition: width .3s; }
.status ol { display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0; margin: .3rem 0 0;
  list-style: none; font-size: .85em; }
.status ol li.now { font-weight: 700; text-decoration: underline; }
.status ol li.past::after { content: " \\2713"; }
#status { padding: 0; }

#plan h2, #plan h3, #plan p, #plan ul { margin: .4rem 0; }
#plan h3 { font-size: 1rem; font-weight: 600; }
#plan .headline { overflow-wrap: anywhere; }
#plan .here { padding: .6rem .9rem; border-radius: .5rem;
  background: var(--background-fill-secondary); }
#plan .tiers { display: grid; gap: .5rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); }
#plan .tier p { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 .75rem; }
.stack { display: flex; height: 1.6rem; border-radius: .3rem; overflow: hidden;
  background: var(--background-fill-secondary); border: 1px solid var(--calm); }
.stack span { min-width: 3px; border-right: 1px solid var(--background-fill-primary); }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; padding: 0; list-style: none;
  font-size: .9em; }
.legend i { display: inline-block; width: .75em; height: .75em; border-radius: .15em; }
/* Of the colour-blind safe palette of Okabe and Ito, https://jfly.uni-koeln.de/color/. */
.colour-0 { background: #0072b2; } .colour-1 { background: #e69f00; }
.colour-2 { background: #009e73; } .colour-3 { background: #cc79a7; }
.colour-4 { background: #56b4e9; } .colour-5 { background: #d55e00; }
.colour-6 { background: #f0e442; } .colour-7 { background: #8a8f98; }
#plan .lines { padding-left: 1.2rem; list-style: disc; overflow-wrap: anywhere; }
#plan .wide { overflow-x: auto; }
#plan table { border-collapse: collapse; margin: .4rem 0; font-variant-numeric: tabular-nums; }
#plan th, #plan td { padding: .2rem .8rem .2rem 0; text-align: left;
  border-bottom: 1px solid var(--border-color-primary); }
#plan code { overflow-wrap: anywhere; white-space: normal; }
#plan summary, #report summary { cursor: pointer; font-weight: 600; padding: .2rem 0; }
#report iframe { width: 100%; height: 34rem; border: 1px solid var(--border-color-primary);
  border-radius: .5rem; margin: .5rem 0; }
#report p { margin: 0; font-size: .9em; overflow-wrap: anywhere; }
footer { display: none !important; }
"""


def make_theme() -> Any:
    """Return the theme: fonts of the machine, and text that stands out by 4.5 to 1 or more."""
    import gradio as gr

    theme = gr.themes.Default(
        primary_hue="blue",
        font=["system-ui", "sans-serif"],  # the page asks no other server for anything
        font_mono=["ui-monospace", "monospace"],
    )
    grey, light = "#57606a", "#b6bec9"
    return theme.set(
        body_text_color_subdued=grey,
        body_text_color_subdued_dark=light,
        block_info_text_color=grey,
        block_info_text_color_dark=light,
        block_label_text_color=grey,
        block_label_text_color_dark=light,
        block_title_text_color="#24292f",
        block_title_text_color_dark="#e6edf3",
        input_placeholder_color=grey,
        input_placeholder_color_dark=light,
        input_border_color="#8a8f98",
        input_border_color_dark="#6e7681",
        button_primary_background_fill="#1d4ed8",
        button_primary_background_fill_dark="#1d4ed8",
        button_primary_background_fill_hover="#1e40af",
        button_primary_background_fill_hover_dark="#1e40af",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
    )
