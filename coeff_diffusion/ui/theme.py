"""How the page looks: one accent, quiet cards, text that can be read, in the light and in the dark."""

import gradio as gr

ACCENT, GREY = gr.themes.colors.teal, gr.themes.colors.stone
# Every text has a contrast of at least 4.5 : 1 to what lies behind it.
THEME = gr.themes.Base(
    primary_hue=ACCENT,
    secondary_hue=ACCENT,
    neutral_hue=GREY,
    radius_size=gr.themes.sizes.radius_md,
    spacing_size=gr.themes.sizes.spacing_md,
    text_size=gr.themes.sizes.text_md,
    # Fonts of the reader's system: a web font would be a request to someone else's server.
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(
    body_background_fill="*neutral_50",
    body_background_fill_dark="*neutral_950",
    body_text_color="*neutral_900",
    body_text_color_dark="*neutral_100",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    background_fill_primary="white",
    background_fill_primary_dark="*neutral_900",
    background_fill_secondary="*neutral_100",
    background_fill_secondary_dark="*neutral_800",
    border_color_primary="*neutral_200",
    border_color_primary_dark="*neutral_700",
    border_color_accent="*primary_700",
    border_color_accent_dark="*primary_400",
    color_accent="*primary_700",
    color_accent_soft="*primary_50",
    color_accent_soft_dark="*neutral_800",
    link_text_color="*primary_700",
    link_text_color_dark="*primary_300",
    # Controls lie on cards; their labels are words above them, not badges.
    block_background_fill="white",
    block_background_fill_dark="*neutral_900",
    block_border_color="*neutral_200",
    block_border_color_dark="*neutral_700",
    block_border_width="1px",
    block_shadow="none",
    block_label_background_fill="*neutral_100",
    block_label_background_fill_dark="*neutral_800",
    block_label_border_color="transparent",
    block_label_text_color="*neutral_800",
    block_label_text_color_dark="*neutral_200",
    block_label_text_weight="600",
    block_title_background_fill="none",
    block_title_text_color="*neutral_900",
    block_title_text_color_dark="*neutral_100",
    block_title_text_weight="600",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_400",
    input_border_width="1px",
    input_background_fill="white",
    input_background_fill_dark="*neutral_950",
    input_border_color="*neutral_300",
    input_border_color_dark="*neutral_600",
    input_border_color_focus="*primary_700",
    input_border_color_focus_dark="*primary_400",
    input_shadow_focus="0 0 0 2px *primary_200",
    input_shadow_focus_dark="0 0 0 2px *primary_800",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
    checkbox_border_color="*neutral_500",
    checkbox_border_color_dark="*neutral_500",
    checkbox_background_color_selected="*primary_700",
    checkbox_background_color_selected_dark="*primary_600",
    checkbox_border_color_selected="*primary_700",
    checkbox_border_color_selected_dark="*primary_600",
    checkbox_label_background_fill="white",
    checkbox_label_background_fill_dark="*neutral_900",
    checkbox_label_background_fill_selected="*primary_700",
    checkbox_label_background_fill_selected_dark="*primary_700",
    checkbox_label_text_color_selected="white",
    checkbox_label_border_width="1px",
    checkbox_label_border_color="*neutral_300",
    checkbox_label_border_color_dark="*neutral_600",
    slider_color="*primary_700",
    slider_color_dark="*primary_500",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_600",
    button_primary_border_color="*primary_700",
    button_primary_border_color_dark="*primary_700",
    button_primary_text_color="white",
    button_border_width="1px",
    button_secondary_background_fill="white",
    button_secondary_background_fill_dark="*neutral_800",
    button_secondary_background_fill_hover="*neutral_100",
    button_secondary_background_fill_hover_dark="*neutral_700",
    button_secondary_border_color="*neutral_300",
    button_secondary_border_color_dark="*neutral_600",
    button_secondary_text_color="*neutral_900",
    button_secondary_text_color_dark="*neutral_100",
    code_background_fill="*neutral_100",
    code_background_fill_dark="*neutral_800",
)
CSS = """
.gradio-container { width: 100% !important; max-width: 1440px !important; margin-inline: auto !important; }
#page-head h1 { font-size: 1.5rem; font-weight: 650; letter-spacing: -0.01em; margin: 0; }
#page-head p { margin: 0.1rem 0 0; color: var(--body-text-color-subdued); }
button[role="tab"] { font-size: var(--text-lg); }
button[role="tab"].selected { color: var(--link-text-color) !important; font-weight: 600; }
.block code { color: var(--body-text-color); }
/* A line that says nothing yet takes no room. */
.block:has(> .html-container > .prose:empty) { padding: 0; margin-bottom: calc(-1 * var(--layout-gap)); }
/* The words below a picture stay readable under the mouse, and under the finger that has chosen it. */
.thumbnail-item .caption-label { opacity: 1 !important; }
/* What files are dropped on has its label above it, not over its picture. */
.block:has([data-testid="upload-text"]) > label.float { position: static; max-width: none; border: 0; }
"""
