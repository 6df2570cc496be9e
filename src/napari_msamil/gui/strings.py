"""Every text a user of the workbench reads, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class _Layer:
    """Names of layers."""

    mask: str = "Lesion mask"
    patches: str = "Patches {scale}"
    attention: str = "Attention {scale}"
    query: str = "Query {query} · {scale}"
    top: str = "Top patches"
    region: str = "What-if region"
    here: str = "Place looked at"
    probability: str = "Instance probability {scale}"
    masked: str = "Masked by MHIM {scale}"
    outline: str = "Lesion outline"
    difference: str = "Difference {scale}"


@dataclass(frozen=True)
class _Title:
    """Titles of sections and docks."""

    workbench: str = "MSA-MIL workbench"
    slide: str = "1  Slide"
    model: str = "2  Model"
    mask: str = "3  Mask"
    patches: str = "4  Patches"
    classify: str = "5  Classify"
    result: str = "6  Result"
    queries: str = "Why: queries and scales"
    gallery: str = "Why: patches the model saw"
    what_if: str = "What if"
    trust: str = "Can attention be trusted here?"
    mhim: str = "MHIM view"
    export: str = "Export"


@dataclass(frozen=True)
class _Slide:
    empty: str = "no slide"
    hint: str = (
        "Open a slide here, drop one on the window, or try File ▸ Open Sample ▸ MSA-MIL"
    )
    open: str = "Open slide…"
    sample: str = "Demo slide"
    open_tip: str = "A whole-slide image: SVS, NDPI, MRXS, SCN, BIF, DICOM, tiled TIFF"
    sample_tip: str = "A small synthetic slide with a planted lesion, made on this computer (about 10 s the first time)"
    choose_tip: str = "The slide the workbench works on"
    facts: str = "{width:,} × {height:,} px · {levels} level{plural} · {vendor}"
    mpp_known: str = "{mpp:.4g} µm/px, from {source}"
    mpp_unknown: str = "Pixel size unknown. Scanners at 40x are usually near 0.25 µm/px, at 20x near 0.5."
    mpp_label: str = "Pixel size"
    mpp_set: str = "Set"
    mpp_tip: str = (
        "µm per level-0 pixel. Everything the model sees depends on it; what you set is stored "
        "with the result."
    )
    source_tag: str = "the file's tag"
    source_objective: str = "the objective power (nominal)"
    source_tiff: str = "the TIFF resolution"
    source_user: str = "you"
    smooth: str = "Smooth panning"
    smooth_tip: str = (
        "Turns napari's asynchronous slicing on: tiles are read beside the window instead of inside it. "
        "This is napari's own setting (Preferences ▸ Experimental) and stays on."
    )
    filter: str = (
        "Slides (*.svs *.ndpi *.vms *.vmu *.scn *.mrxs *.svslide *.bif *.czi *.dcm *.tif *.tiff);;"
        "All files (*)"
    )


@dataclass(frozen=True)
class _Model:
    empty: str = "no model"
    tip: str = "A checkpoint file (.safetensors), hf://owner/name[@revision], or the built-in demo model"
    browse: str = "Browse…"
    details: str = "Details…"
    details_tip: str = "Classes, scales, metrics, licence, intended use, and the self-test of this checkpoint"
    filter: str = "Checkpoints (*.safetensors);;All files (*)"
    line: str = "{count} classes: {classes}"
    scales: str = "Scales: {scales}"
    no_segmenter: str = "No lesion segmenter inside: the tissue mask is used instead."
    demo_note: str = "Trained on synthetic data. Not for diagnosis."
    selftest: str = "Run self-test"
    selftest_running: str = "Running the self-test …"
    selftest_ok: str = (
        "Self-test passed: largest difference of a recorded logit {diff:.1e}."
    )
    selftest_bad: str = (
        "Self-test FAILED: a recorded logit differs by {diff:.1e}. Do not trust results of this model on "
        "this computer."
    )
    dialog: str = "Model"
    fits: str = "Fits this slide"
    fits_yes: str = "yes: {mpp:.3g} µm/px is fine enough for {finest} ({need:.3g} µm/px)"
    fits_no: str = (
        "no: this model was trained at {need:.3g} µm/px; the finest level of the slide has {mpp:.3g}. "
        "Results would be meaningless, so it is not run."
    )
    fits_unknown: str = (
        "unknown: the slide has no pixel size. Enter it under Slide ▸ Pixel size."
    )
    untested: str = "This checkpoint records no reference logits; it cannot be tested."


@dataclass(frozen=True)
class _Mask:
    empty: str = "none yet: Classify makes one"
    find: str = "Find"
    method_lesion: str = "Lesion (model)"
    method_tissue: str = "Tissue (colour)"
    method_all: str = "Whole slide"
    method_tip: str = "Lesion: the model's UNet++ on a thumbnail. Tissue: everything that is not background."
    find_tip: str = "Make the mask now, without classifying"
    edit: str = "Edit"
    edit_tip: str = (
        "Select the mask layer with the brush: paint to add, right tools to fill or draw polygons, "
        "Ctrl+Z to undo. Key 1 erases, 2 paints."
    )
    lock: str = "Lock"
    lock_tip: str = "Protect the mask from painting by accident"
    reset: str = "Reset"
    reset_tip: str = "Back to the mask as it was found or imported"
    outline: str = "Outline"
    outline_tip: str = "Show only the border of the mask"
    load: str = "Import…"
    load_tip: str = "QuPath GeoJSON, ASAP or ImageScope XML, JSON, or a mask picture of this slide"
    save: str = "Export…"
    save_tip: str = "GeoJSON in level-0 pixels (QuPath opens it), or PNG of the mask grid (exact)"
    summary: str = "{share:.1%} of the slide, {source}"
    source_model: str = "found by the model"
    source_tissue: str = "all tissue"
    source_file: str = "from a file"
    source_user: str = "edited by you"
    load_filter: str = "Annotations and masks (*.geojson *.json *.xml *.png *.tif *.tiff);;All files (*)"
    save_filter: str = "GeoJSON (*.geojson);;PNG of the mask grid (*.png)"


@dataclass(frozen=True)
class _Patches:
    empty: str = "after the mask"
    strategy: str = "Use"
    strategy_model: str = "as the model says"
    strategy_lesion: str = "lesion patches"
    strategy_tissue: str = "all tissue patches"
    strategy_random: str = "random tissue patches"
    strategy_tip: str = "Which patches of the slide the model sees"
    threshold: str = "Lesion share above"
    threshold_tip: str = (
        "A patch is used if more than this share of its area is inside the mask (0 … 1)"
    )
    preview: str = "Show patches"
    preview_tip: str = "One grid per scale, coloured by lesion share"
    gallery: str = "What the model will see…"
    gallery_tip: str = "A sample of the selected patches after resampling, exactly as the encoder gets them"
    none: str = "no patch passes"


@dataclass(frozen=True)
class _Run:
    classify: str = "Classify"
    classify_tip: str = (
        "Mask (if there is none), patches, features, answer. Ctrl+Return"
    )
    cancel: str = "Cancel"
    cancel_tip: str = "Stop now; what is known so far is kept and marked partial. Esc"
    auto: str = "Classify again after each mask edit"
    auto_tip: str = (
        "Only patches that are new are encoded, so this takes a moment, not minutes"
    )
    copy: str = "Copy as command"
    copy_tip: str = "The msamil command line that gives this result, on the clipboard; an edited mask is saved beside it"
    copied: str = "Copied: {command}"
    idle: str = "ready"
    no_slide: str = "Open a slide first."
    loading: str = "Loading the model …"
    stage_open: str = "Opening"
    stage_mask: str = "Finding the lesion"
    stage_patches: str = "Choosing patches"
    stage_read: str = "Reading patches"
    stage_encode: str = "Reading and encoding patches"
    stage_aggregate: str = "Putting the answer together"
    stage_export: str = "Writing files"
    rate: str = "{stage} · {done:,}/{total:,} · {rate:.0f} patches/s · {left} left"
    count: str = "{stage} · {done:,}/{total:,}"
    cancelled: str = "cancelled; the answer so far is kept and marked partial"
    cancelled_empty: str = "cancelled before there was an answer"
    done: str = "done in {seconds:.1f} s"
    busy: str = "running"


@dataclass(frozen=True)
class _Result:
    empty: str = "no answer yet"
    running: str = "filling in …"
    partial: str = "partial"
    stale: str = "stale: mask, patches or model changed since"
    prediction: str = "{name}  {probability:.1%}"
    note: str = "Research only, not for diagnosis."
    delta_tip: str = "Change against the answer before this one"
    scale_share: str = "Attention by scale"
    without_scale: str = "without {scale}: {delta:+.3f}"
    hover_empty: str = "Point at the slide to read a patch's values"
    hover: str = "{scale}  attention {attention:.2%} (rank {rank}/{count})  lesion {lesion:.0%}"
    show_attention: str = "Attention"
    show_tip: str = "Which attention maps are shown over the slide"
    changed: str = "{before} → {after} · {gained} patches gained, {lost} lost"
    unchanged: str = "{after} as before · {gained} patches gained, {lost} lost"


@dataclass(frozen=True)
class _Query:
    none: str = "This model has no learned queries; its attention has one map per scale."
    all: str = "all queries"
    column_query: str = "Query"
    column_gate: str = "Gate"
    column_top: str = "Peak"
    column_scale: str = "Mostly on"
    tip: str = (
        "Each learned query looks at the slide by itself; its gate (0 … 1) says how much it counts in the "
        "answer. Select one to see its map and its top patches."
    )
    contribution: str = "How much each scale matters"
    contribution_tip: str = "Change of the probability of the predicted class when the patches of one scale are left out"
    contribute: str = "Leave each scale out"


@dataclass(frozen=True)
class _Gallery:
    rank_by: str = "Show"
    top: str = "highest attention"
    low: str = "lowest attention"
    query: str = "top of the selected query"
    sample: str = "a sample of all selected"
    scale: str = "Scale"
    any_scale: str = "all"
    count: str = "How many"
    sheet: str = "Save contact sheet…"
    sheet_tip: str = "These patches with their values as one picture"
    table: str = "Features table"
    table_tip: str = (
        "Open napari's sortable table of the top patches; selecting a row selects the point"
    )
    fly_tip: str = "Click a patch to fly there"
    triplet: str = "Click the slide to see that place at every scale"
    place: str = "This place, as the model sees it"
    reading: str = "reading …"
    empty: str = "nothing to show yet"
    caption: str = "{scale}  {attention:.2%}"
    caption_plain: str = "{scale}  lesion {lesion:.0%}"
    not_selected: str = "{scale}  not used"
    unread: str = "unreadable"


@dataclass(frozen=True)
class _WhatIf:
    draw: str = "Draw a region"
    draw_tip: str = (
        "Draw one or more polygons; patches whose centre lies inside are the region"
    )
    ask: str = "Ask"
    ask_tip: str = (
        "Answer without the region, and with the region only; no patch is encoded again"
    )
    clear: str = "Clear"
    column_class: str = "Class"
    column_full: str = "all"
    column_without: str = "without"
    column_only: str = "only"
    empty_region: str = "Draw a region around some patches first."
    counts: str = "{inside} of {total} patches are inside the region"
    all_inside: str = (
        "All patches are inside the region; without it there is nothing to ask about."
    )


@dataclass(frozen=True)
class _Trust:
    run: str = "Measure"
    tip: str = (
        "Deletes the most attended patches step by step and compares with deleting random ones. If both "
        "curves fall alike, attention does not say what the answer rests on."
    )
    x: str = "patches deleted (%)"
    y: str = "probability of {name}"
    attended: str = "most attended first"
    random: str = "random (mean of {repeats}, min … max)"
    verdict: str = "Area between the curves {gap:+.3f}: {word}"
    strong: str = "attention points at what the answer rests on"
    weak: str = "attention says little here"
    wrong: str = "random deletion hurts more: do not read this attention as evidence"


@dataclass(frozen=True)
class _Mhim:
    none: str = (
        "This model was not trained with MHIM; the view below shows what MHIM would mask."
    )
    show: str = "Show MHIM layers"
    tip: str = (
        "Cyan: instance probability of the predicted class. Bright: attention. Grid in magenta: instances a "
        "teacher with this attention would mask. Line: the lesion outline."
    )
    high: str = "Mask the highest (%)"
    low: str = "Mask the lowest (%)"
    random: str = "Mask at random (%)"
    masked: str = "{masked} of {total} instances masked: {high} high, {low} low, {random} random; {kept} kept"


@dataclass(frozen=True)
class _Export:
    folder: str = "Result folder…"
    folder_tip: str = (
        "Everything: result.json, patches.csv, GeoJSON for QuPath, pictures, OME-Zarr"
    )
    geojson: str = "QuPath GeoJSON…"
    csv: str = "Patches CSV…"
    zarr: str = "Heat map OME-Zarr…"
    report: str = "HTML report…"
    picture: str = "Overview PNG…"
    written: str = "Wrote {path}"
    command: str = "Copy as command"


@dataclass(frozen=True)
class _Worklist:
    title: str = "MSA-MIL worklist"
    add: str = "Add slides…"
    add_folder: str = "Add folder…"
    add_cohort: str = "Add cohort CSV…"
    output: str = "Results in"
    run: str = "Run queue"
    cancel: str = "Cancel"
    export: str = "Export labels…"
    export_tip: str = (
        "slide_id, path, label, and your comments as CSV that msamil-train reads"
    )
    remove: str = "Remove"
    columns: tuple[str, ...] = (
        "Slide",
        "State",
        "Class",
        "Probability",
        "Uncertainty",
        "Verdict",
        "Label",
        "Comment",
    )
    waiting: str = "waiting"
    running: str = "running"
    done: str = "done"
    failed: str = "failed"
    agree: str = "agree"
    disagree: str = "disagree"
    open_verdict: str = "open"
    empty: str = "Add slides, choose where results go, and run the queue. Double-click a row to open it."
    summary: str = "{done} of {total} done, {failed} failed"
    uncertainty_tip: str = "Entropy of the probabilities, 0 (sure) … 1 (any class)"


@dataclass(frozen=True)
class _Compare:
    title: str = "MSA-MIL compare"
    left: str = "A (main window)"
    right: str = "B (here)"
    what: str = "Compare with"
    other_model: str = "another model"
    other_mask: str = "another mask"
    current: str = "Take the current answer as A"
    run: str = "Make B"
    choose: str = "Choose…"
    linked: str = "Link the cameras"
    difference: str = "Show the difference map (A − B) on the slide"
    need_result: str = "Classify the slide first: the current answer is A."
    line: str = "A: {a} {pa:.1%}   B: {b} {pb:.1%}"
    tip: str = "Same slide, same place, two answers"


@dataclass(frozen=True)
class _Error:
    mask_without_slide: str = (
        "This labels layer does not lie on a slide, so it has no level-0 coordinates. Save it as .png, or "
        "make the mask in the MSA-MIL workbench."
    )
    no_result_in_layers: str = "None of these layers belongs to an MSA-MIL result. Classify a slide first, then save one of its overlays."
    unknown_suffix: str = "{path} has a suffix the workbench does not write. Use .geojson, .csv, .json or .zarr."
    unexpected: str = "Unexpected error: {error}. Details are in the log (napari ▸ Help ▸ Show logs, or the terminal)."
    no_mpp: str = (
        "{name} has no pixel size. Enter it under Slide ▸ Pixel size; scanners at 40x are usually near 0.25 µm/px, "
        "at 20x near 0.5."
    )
    no_features: str = "This answer was loaded from a folder and holds no features; classify again to ask such questions."


LAYER = _Layer()
TITLE = _Title()
SLIDE = _Slide()
MODEL = _Model()
MASK = _Mask()
PATCHES = _Patches()
RUN = _Run()
RESULT = _Result()
QUERY = _Query()
GALLERY = _Gallery()
WHAT_IF = _WhatIf()
TRUST = _Trust()
MHIM = _Mhim()
EXPORT = _Export()
WORKLIST = _Worklist()
COMPARE = _Compare()
ERROR = _Error()
