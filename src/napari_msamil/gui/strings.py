"""Every text a user of the workbench reads, in one place: one class per part of the window."""

from __future__ import annotations

# fmt: off


class LAYER:
    """Names of layers."""

    mask = "Lesion mask"
    patches = "Patches {scale}"
    attention = "Attention {scale}"
    query = "Query {query} · {scale}"
    top = "Top patches"
    region = "What-if region"
    here = "Place looked at"
    bright = "Attention (bright) {scale}"
    probability = "Instance probability {scale}"
    masked = "Masked by MHIM {scale}"
    outline = "Lesion outline"
    difference = "Difference {scale}"


class TITLE:
    """Titles of sections and docks."""

    workbench = "MSA-MIL workbench"
    slide = "1  Slide"
    model = "2  Model"
    mask = "3  Mask"
    patches = "4  Patches"
    classify = "5  Classify"
    result = "6  Result"
    queries = "Why: queries and scales"
    gallery = "Why: patches the model saw"
    what_if = "What if"
    trust = "Can attention be trusted here?"
    mhim = "MHIM view"
    export = "Export"


class SLIDE:
    """Section 1."""

    empty = "no slide"
    painting = "painting the demo slide …"
    hint = "Open a slide here, drop one on the window, or try File ▸ Open Sample ▸ MSA-MIL"
    open = "Open…"
    sample = "Demo"
    open_tip = "A whole-slide image: SVS, NDPI, MRXS, SCN, BIF, DICOM, tiled TIFF"
    sample_tip = "A small synthetic slide with a planted lesion, made on this computer (about 10 s the first time)"
    choose_tip = "The slide the workbench works on; the others are hidden. What was found for a slide is forgotten when another one is chosen, its features are kept in the cache."
    facts = "{width:,} × {height:,} px · {levels} level{plural} · {vendor}"
    mpp_known = "{mpp:.4g} µm/px, from {source}"
    mpp_unknown = "Pixel size unknown. Scanners at 40x are usually near 0.25 µm/px, at 20x near 0.5."
    mpp_label = "Pixel size"
    mpp_none = "? µm/px"
    mpp_set = "Set"
    mpp_tip = "µm per level-0 pixel. Everything the model sees depends on it; what you set is stored with the result."
    source_tag = "the file's tag"
    source_objective = "the objective power (nominal)"
    source_tiff = "the TIFF resolution"
    source_user = "you"
    smooth = "Smooth panning"
    smooth_tip = "Turns napari's asynchronous slicing on: tiles are read beside the window instead of inside it. This is napari's own setting (Preferences ▸ Experimental) and stays on."
    smooth_offer = "Let napari read tiles beside the window, so that slides pan smoothly? Asked once; the workbench has the switch."
    smooth_accept = "Turn on"
    filter = "Slides (*.svs *.ndpi *.vms *.vmu *.scn *.mrxs *.svslide *.bif *.czi *.dcm *.tif *.tiff);;All files (*)"


class MODEL:
    """Section 2 and the model dialog."""

    empty = "no model"
    tip = "A checkpoint file (.safetensors), hf://owner/name[@revision], or the built-in demo model"
    browse = "Browse…"
    details = "Details…"
    details_tip = "Classes, scales, metrics, licence, intended use, and the self-test of this checkpoint"
    filter = "Checkpoints (*.safetensors);;All files (*)"
    line = "{count} classes: {classes}"
    scales = "Scales: {scales}"
    no_segmenter = "No lesion segmenter inside: the tissue mask is used instead."
    selftest = "Run self-test"
    selftest_running = "Running the self-test …"
    selftest_ok = "Self-test passed: largest difference of a recorded logit {diff:.1e}."
    selftest_bad = "Self-test FAILED: a recorded logit differs by {diff:.1e}. Do not trust results of this model on this computer."
    dialog = "Model"
    fits = "Fits this slide"
    fits_yes = "yes: {mpp:.3g} µm/px is fine enough for {finest} ({need:.3g} µm/px)"
    fits_no = "no: this model was trained at {need:.3g} µm/px; the finest level of the slide has {mpp:.3g}. Results would be meaningless, so it is not run."
    fits_unknown = "unknown: the slide has no pixel size. Enter it under Slide ▸ Pixel size."
    untested = "This checkpoint records no reference logits; it cannot be tested."


class MASK:
    """Section 3."""

    empty = "none yet: Classify makes one"
    find = "Find"
    method_lesion = "Lesion (model)"
    method_tissue = "Tissue (colour)"
    method_all = "Whole slide"
    method_tip = "Lesion: the model's UNet++ on a thumbnail. Tissue: everything that is not background."
    find_tip = "Make the mask now, without classifying"
    edit = "Edit"
    edit_tip = "Select the mask layer with the brush: paint to add, right tools to fill or draw polygons, Ctrl+Z to undo. Key 1 erases, 2 paints."
    lock = "Lock"
    lock_tip = "Protect the mask from painting by accident"
    reset = "Reset"
    reset_tip = "Back to the mask as it was found or imported"
    outline = "Outline"
    outline_tip = "Show only the border of the mask"
    load = "Import…"
    load_tip = "QuPath GeoJSON, ASAP or ImageScope XML, JSON, or a mask picture of this slide"
    save = "Export…"
    save_tip = "GeoJSON in level-0 pixels (QuPath opens it), or PNG of the mask grid (exact)"
    summary = "{share:.1%} of the slide, {source}"
    source_model = "found by the model"
    source_tissue = "all tissue"
    source_file = "from a file"
    source_user = "edited by you"
    load_filter = "Annotations and masks (*.geojson *.json *.xml *.png *.tif *.tiff);;All files (*)"
    save_filter = "GeoJSON (*.geojson);;PNG of the mask grid (*.png)"


class PATCHES:
    """Section 4."""

    empty = "after the mask"
    strategy = "Use"
    strategy_model = "as the model says"
    strategy_lesion = "lesion patches"
    strategy_tissue = "all tissue patches"
    strategy_random = "random tissue patches"
    strategy_tip = "Which patches of the slide the model sees"
    threshold = "Lesion share above"
    threshold_tip = "A patch is used if more than this share of its area is inside the mask (0 … 1)"
    preview = "Show patches"
    preview_tip = "The selected patches of one scale as a grid over the slide, coloured by lesion share (0 … 1)"
    gallery = "Look at them…"
    gallery_tip = "A sample of the selected patches after resampling, exactly as the encoder gets them"
    none = "no patch passes"


class RUN:
    """Section 5."""

    classify = "Classify"
    classify_tip = "Mask (if there is none), patches, features, answer. Ctrl+Return"
    cancel = "Cancel"
    cancel_tip = "Stop now; what is known so far is kept and marked partial. Esc"
    auto = "Classify again after each mask edit"
    auto_tip = "Only patches that are new are encoded, so this takes a moment, not minutes"
    copy = "As command"
    copy_tip = "The msamil command line that gives this result, on the clipboard; an edited mask is saved beside it"
    copied = "Copied: {command}"
    idle = "ready"
    no_slide = "Open a slide first."
    loading = "Loading the model …"
    stage_open = "Opening"
    stage_mask = "Finding the lesion"
    stage_patches = "Choosing patches"
    stage_read = "Reading patches"
    stage_encode = "Reading and encoding patches"
    stage_aggregate = "Putting the answer together"
    stage_export = "Writing files"
    rate = "{stage} · {done:,}/{total:,} · {rate:.0f} patches/s · {left} left"
    count = "{stage} · {done:,}/{total:,}"
    cancelled = "cancelled; the answer so far is kept and marked partial"
    cancelled_empty = "cancelled before there was an answer"
    done = "done in {seconds:.1f} s"
    busy = "running"
    worklist = "Worklist…"
    compare = "Compare…"


class RESULT:
    """Section 6."""

    empty = "no answer yet"
    running = "filling in …"
    partial = "partial"
    stale = "stale: mask, patches or model changed since"
    prediction = "{name}  {probability:.1%}"
    note = "Research only, not for diagnosis."
    delta_tip = "Change against the answer before this one, in percentage points"
    scale_share = "Attention by scale"
    without_scale = "without {scale}: {delta:+.1f} points"
    hover_empty = "Point at the slide to read a patch's values"
    hover = "{scale}  attention {attention:.2%} (rank {rank}/{count})  lesion {lesion:.0%}"
    show_attention = "Attention"
    show_tip = "Attention of each patch over the slide: from blue (an even share) to red (three times that, or more)"
    at_scale = "at"
    scale_tip = "Which scale's maps are shown over the slide"
    changed = "{before} → {after} · {gained} patches gained, {lost} lost"
    unchanged = "{after} as before · {gained} patches gained, {lost} lost"


class QUERY:
    """Queries and scales."""

    none = "This model has no learned queries; its attention has one map per scale."
    all = "all queries"
    column_query = "Query"
    column_gate = "Gate"
    column_top = "Peak"
    column_scale = "Mostly on"
    tip = "Each learned query looks at the slide by itself; its gate (0 … 1) says how much it counts in the answer. Select one to see its map and its top patches."
    contribution = "How much each scale matters"
    contribution_tip = "Change of the probability of the predicted class, in percentage points, when the patches of one scale are left out"
    contribute = "Leave each scale out"


class GALLERY:
    """Pictures of patches."""

    rank_by = "Show"
    top = "highest attention"
    low = "lowest attention"
    query = "top of the selected query"
    sample = "a sample of all selected"
    scale = "Scale"
    any_scale = "all"
    count = "How many patches"
    sheet = "Save contact sheet…"
    sheet_tip = "These patches with their values as one picture"
    table = "Features table"
    table_tip = "Open napari's sortable table of the top patches; selecting a row selects the point"
    fly_tip = "Click a patch to fly there"
    triplet = "Click the slide to see that place at every scale"
    reading = "reading …"
    caption = "{scale}  {attention:.2%}"
    caption_plain = "{scale}  lesion {lesion:.0%}"
    not_selected = "{scale}  not used"
    unread = "unreadable"


class WHAT_IF:
    """Regions."""

    draw = "Draw a region"
    draw_tip = "Draw round some patches: the answer without them, and with them only, comes at once. More than one region may be drawn; patches whose centre lies inside count."
    ask = "Ask again"
    ask_tip = "Answer without the region, and with the region only; no patch is encoded again"
    clear = "Clear"
    column_class = "Class"
    column_full = "all"
    column_without = "without"
    column_only = "only"
    empty_region = "Draw a region around some patches first."
    counts = "{inside} of {total} patches are inside the region"
    all_inside = "All patches are inside the region; without it there is nothing to ask about."


class TRUST:
    """The faithfulness curve."""

    run = "Measure"
    tip = "Deletes the most attended patches step by step and compares with deleting random ones. If both curves fall alike, attention does not say what the answer rests on."
    x = "patches deleted (%)"
    y = "probability of {name}"
    attended = "most attended first"
    random = "random (mean of {repeats}, min … max)"
    verdict = "Area between the curves {gap:+.3f}: {word}"
    strong = "attention points at what the answer rests on"
    weak = "attention says little here"
    wrong = "random deletion hurts more: do not read this attention as evidence"


class MHIM:
    """The MHIM view."""

    none = "Not trained with MHIM; this shows what MHIM would mask."
    show = "Show MHIM layers"
    tip = "Bright: much attention. Cyan: patches that alone would get the predicted class. Magenta: what a teacher with this attention would mask as too easy (high), violet: at random, blue: as low. Line: lesion outline."
    high = "Mask the highest"
    low = "Mask the lowest"
    random = "Mask at random"
    share_tip = "{what}: share of all patches in percent"
    masked = "{masked} of {total} instances masked: {high} high, {low} low, {random} random; {kept} kept"


class EXPORT:
    """Files."""

    folder = "Result folder…"
    folder_tip = "Everything: result.json, patches.csv, GeoJSON for QuPath, pictures, OME-Zarr"
    geojson = "QuPath GeoJSON…"
    csv = "Patches CSV…"
    zarr = "Heat map OME-Zarr…"
    report = "HTML report…"
    picture = "Overview PNG…"
    written = "Wrote {path}"


class WORKLIST:
    """The worklist dock."""

    title = "MSA-MIL worklist"
    add = "Add slides…"
    add_folder = "Add folder…"
    add_cohort = "Add cohort CSV…"
    output = "Results in"
    run = "Run queue"
    cancel = "Cancel"
    export = "Export labels…"
    export_tip = "slide_id, path, label, and your comments as CSV that msamil-train reads"
    remove = "Remove"
    remove_tip = "Take the selected slides off the list; results on disk stay"
    run_tip = "Classify what is not finished yet with the workbench's model; finished slides are skipped"
    verdict_tip = "Is the answer right? For a wrong one, type the right class under Label."
    exported = "Wrote {count} judged slides to {path}"
    columns = ("Slide", "State", "Class", "Probability", "Uncertainty", "Verdict", "Label", "Comment")
    waiting = "waiting"
    running = "running"
    done = "done"
    failed = "failed"
    agree = "agree"
    disagree = "disagree"
    open_verdict = "open"
    empty = "Add slides, choose where results go, and run the queue. Double-click a row to open it."
    summary = "{done} of {total} done, {failed} failed"
    uncertainty_tip = "Entropy of the probabilities, 0 (sure) … 1 (any class)"


class COMPARE:
    """The compare dock."""

    title = "MSA-MIL compare"
    right = "B (here)"
    what = "Compare with"
    other_model = "another model"
    other_mask = "another mask"
    run = "Make B"
    choose = "Choose…"
    linked = "Link the views"
    linked_tip = "Pan and zoom of one canvas move the other, too"
    difference = "Difference map A − B"
    difference_tip = "Attention of A minus attention of B over the slide of A: green where A looks more, pink where B does"
    run_tip = "Classify this slide with the other model or mask; the answer in the main window stays as A"
    need_result = "Classify the slide first: the current answer is A."
    line = "A: {a} {pa:.1%}   B: {b} {pb:.1%}"
    tip = "Same slide, same place, two answers"
    model_hint = "checkpoint, hf://owner/name, or demo"
    mask_hint = "mask or annotation file; empty: all tissue"


class ERROR:
    """Sentences about what went wrong."""

    mask_without_slide = "This labels layer does not lie on a slide, so it has no level-0 coordinates. Save it as .png, or make the mask in the MSA-MIL workbench."
    no_result_in_layers = "None of these layers belongs to an MSA-MIL result. Classify a slide first, then save one of its overlays."
    unknown_suffix = "{path} has a suffix the workbench does not write. Use .geojson, .csv, .json or .zarr."
    unexpected = "Unexpected error: {error}. Details are in the log (napari ▸ Help ▸ Show logs, or the terminal)."
    no_mpp = "{name} has no pixel size. Enter it under Slide ▸ Pixel size; scanners at 40x are usually near 0.25 µm/px, at 20x near 0.5."
    no_features = "This answer was loaded from a folder and holds no features; classify again to ask such questions."
