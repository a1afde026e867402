"""The words of the report page: what each picture shows, and what good looks like."""

CAPTIONS = {
    "gains": (
        "Does a domain gain from its own draft?",
        "The point is how much faster the domain's own draft is predicted to be than the mixed draft, with the 95 % "
        "interval over prompts. The grey bar is what chance alone brings: the difference between drafts that were "
        "searched with another seed or on another half of the prompts. Good: the point above the grey bar, its "
        "interval above zero. Where that is not so, the domain takes the mixed draft, and nothing is lost.",
    ),
    "parts": (
        "What each part of a draft brings",
        "Predicted speed on held-out prompts of each domain's draft if it only skipped its sub-layers (mask), only "
        "had its patch, only scored its vocabulary, only read weights of fewer bits (bits), and of all of it. A part "
        "that the draft does not have is plain decoding, which is 1. Good: all of it above each of its parts.",
    ),
    "patches": (
        "How often a patch is right",
        "Share of places in answers, of prompts that were kept apart from its fit, where the first choice of the one "
        "matrix that stands for all layers is the model's own; among the domain's commonest tokens. Blue, as least "
        "squares find it; orange, after gradient steps towards the model's choices. Good: above a third, and the "
        "second bar above the first.",
    ),
    "speeds": (
        "Acceptance and speed of each domain",
        "Left, the share of drafted tokens that the full model accepts. Right, tokens per second over plain "
        "decoding: as the score predicts it for decoding alone, and as measured from the prompt to the last token, "
        "which is lower where prompts are long. Good: acceptance above 0.7, both bars above the dashed line and "
        "near each other.",
    ),
    "masks": (
        "What drafts skip",
        "Dark sub-layers are kept in a draft, pale ones skipped; where one is orange, a patch takes the place of all "
        "layers. The first layer is at the bottom. These are the "
        "masks as searched, before the verdict above, each with its weights and vocabulary. Columns that look alike "
        "are domains that could share a draft.",
    ),
    "cross": (
        "The draft of one domain on the prompts of another",
        "Predicted speed on held-out prompts: a row per draft, a column per domain, shaded within the column. Good: "
        "the diagonal is the largest figure of its column by more than the noise. A column of equal figures says "
        "that any of the drafts will do.",
    ),
    "map": (
        "Map of the prompts",
        "Each dot is a prompt, placed by t-SNE so that similar prompt vectors lie together; diamonds are the "
        "anchors that the router compares prompts with. Good: one colour to a cloud, with its diamonds inside. "
        "Distances between clouds mean nothing.",
    ),
    "routing": (
        "Where held-out prompts are routed",
        "A row per true domain, a column per decision; the last column counts prompts that are like no anchor and "
        "take the mixed draft. Good: everything on the diagonal. A wrong route costs speed, never a wrong "
        "token.",
    ),
    "curves": (
        "The search",
        "The best predicted speed after so many scored drafts. It begins with weights and vocabularies, then come "
        "the patch, masks made by rules, proposals, and the vocabularies once more. Good: curves that are flat at the "
        "end; if one still rises, a larger --budget would pay.",
    ),
    "seconds": (
        "What the calibration cost",
        "Seconds of each stage, in the run that finished it. The search of a domain includes its controls.",
    ),
    "correlation": (
        "Can the score be trusted?",
        "Each dot is a draft: what the score predicts, and what decoding the same held-out prompts with it "
        "measured. Good: a rising line, which is a rank correlation of 0.8 or more; what lies above or below is "
        "what the score does not know.",
    ),
    "strategies": (
        "Ways to search",
        "The best predicted speed after so many scored masks, for each way to propose them, all from the same "
        "start; the line is the mean over seeds, the band from the worst to the best. Good: high early, and a "
        "narrow band.",
    ),
    "rival": (
        "Against another artifact",
        "Measured speed with the drafts of the other artifact over that with the drafts of this one, in turn on the "
        "same prompts. Good: the interval holds 1, or lies below it.",
    ),
}

SECTION = """<section><h2>{title}</h2><img alt="{title}" src="{source}"><p>{caption}</p></section>"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Calibration of {model}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #20262c; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.7rem; margin-bottom: .3rem; }} h2 {{ font-size: 1.2rem; margin: 2.4rem 0 .6rem; }}
img {{ max-width: 100%; display: block; }} p {{ max-width: 48rem; }} .wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .9rem; }} td {{ padding: .3rem .7rem .3rem 0; white-space: nowrap; }}
thead td {{ font-weight: 600; border-bottom: 2px solid #20262c; }} tbody tr {{ border-bottom: 1px solid #d5d8dc; }}
footer {{ color: #5b646d; font-size: .85rem; margin-top: 3rem; border-top: 1px solid #d5d8dc; }}
</style></head><body>
<h1>Calibration of {model}</h1>
<p>A server can draft tokens with a part of the model, and check them with the whole model, which changes no token. A
draft may skip attention and MLP sub-layers, score a part of the vocabulary, and read weights of fewer bits. This page
says which drafts were found for which kinds of prompt (the domains), and what they are worth.</p>
<p><strong>{summary}</strong></p>
<div class="wide"><table>{table}</table></div>
<p>Figures are of held-out prompts, which no search saw. <em>predicted</em> and <em>measured</em> are speeds over plain
decoding; <em>draft cost</em> is the time of a drafted token in units of a plain one; <em>gain</em> is what the domain's
own draft is predicted to add to the speed of the mixed one, <em>noise</em> the part of such differences that is
chance.</p>
<p>{routing}</p>
{sections}
<footer><p>Made {created}. Options: {settings}. Versions: {versions}.</p></footer>
</body></html>
"""
