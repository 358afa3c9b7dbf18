//! An SVG in pixels, with the fonts of this machine.

use std::sync::Arc;

use resvg::{tiny_skia, usvg};

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// The SVG cannot be read.
    #[error("the chart is not an SVG: {0}")]
    Svg(String),
    /// The picture is too large for memory, or cannot be packed.
    #[error("the chart cannot be drawn in {width} x {height} pixels")]
    Size {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
    },
}

/// A PNG, and whether a font with Hangul was there to draw it with.
pub struct Picture {
    /// The file.
    pub bytes: Vec<u8>,
    /// Whether Hangul could be drawn.
    pub has_hangul: bool,
}

/// Draws an SVG at `scale` pixels to its unit.
///
/// Errors: not an SVG; too large.
pub fn png(svg: &str, scale: f32) -> Result<Picture, PlotError> {
    let mut fonts = usvg::fontdb::Database::new();
    fonts.load_system_fonts();
    let has_hangul = fonts.faces().any(|face| {
        fonts.with_face_data(face.id, |data, index| {
            ttf_parser::Face::parse(data, index).is_ok_and(|face| face.glyph_index('한').is_some())
        }) == Some(true)
    });
    let options = usvg::Options { fontdb: Arc::new(fonts), ..usvg::Options::default() };
    let tree = usvg::Tree::from_str(svg, &options).map_err(|error| PlotError::Svg(error.to_string()))?;
    let [width, height] =
        [tree.size().width(), tree.size().height()].map(|side| (side * scale).ceil() as u32);
    let too_large = || PlotError::Size { width, height };
    let mut pixels = tiny_skia::Pixmap::new(width, height).ok_or_else(too_large)?;
    resvg::render(&tree, tiny_skia::Transform::from_scale(scale, scale), &mut pixels.as_mut());
    Ok(Picture { bytes: pixels.encode_png().map_err(|_| too_large())?, has_hangul })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_its_size_and_is_not_blank() {
        let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"20\" height=\"10\"><rect width=\"5\" height=\"5\"/></svg>";
        let picture = png(svg, 2.0).unwrap();
        let pixels = tiny_skia::Pixmap::decode_png(&picture.bytes).unwrap();
        assert_eq!((pixels.width(), pixels.height()), (40, 20));
        assert_eq!(pixels.pixel(3, 3).unwrap().alpha(), 255);
        assert_eq!(pixels.pixel(30, 15).unwrap().alpha(), 0);
        assert!(png("<svg", 1.0).is_err());
    }
}
