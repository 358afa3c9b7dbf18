//! What all charts draw with.

use std::fmt::Write;

/// Families that have Hangul, then any.
const FONTS: &str = "Pretendard, 'Noto Sans KR', 'Noto Sans CJK KR', NanumGothic, 'Apple SD Gothic Neo', 'Malgun Gothic', \
                     'DejaVu Sans', Arial, sans-serif";
/// Okabe and Ito's colours, which people tell apart whatever their sight; black last.
pub const COLOURS: [&str; 8] =
    ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A6A00", "#000000"];
/// How headings look.
pub const TITLE: &str = "font-size=\"17\" font-weight=\"600\" fill=\"#222222\"";
/// How lines below a heading look.
pub const SUBTITLE: &str = "fill=\"#666666\"";
/// How names of axes look.
pub const LABEL: &str = "fill=\"#333333\"";
/// How values along an axis look.
pub const TICK: &str = "fill=\"#555555\" font-size=\"12\"";

/// The opening of an SVG of some size on white; screen readers say the title.
pub fn begin((width, height): (f64, f64), title: &str) -> String {
    let title = escape(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" aria-label=\"{title}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"{FONTS}\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    )
}

/// A straight line.
pub fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>",
        from.0, from.1, to.0, to.1
    );
}

/// Text whose `anchor` (start, middle, end) is at a place.
pub fn text(svg: &mut String, at: (f64, f64), anchor: &str, attributes: &str, content: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" {attributes}>{}</text>",
        at.0,
        at.1,
        escape(content)
    );
}

/// Text that reads upwards, its middle at a place.
pub fn upward(svg: &mut String, at: (f64, f64), content: &str) {
    let turn = format!("{LABEL} transform=\"rotate(-90 {:.1} {:.1})\"", at.0, at.1);
    text(svg, at, "middle", &turn, content);
}

/// As text or as the value of an attribute. What XML has no place for, such as most control characters, is left out.
pub fn escape(content: &str) -> String {
    let mut escaped = String::with_capacity(content.len());
    for c in content.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\t' | '\n' | '\r' => escaped.push(' '),
            c if c.is_control() || matches!(c, '\u{FFFE}' | '\u{FFFF}') => {}
            c => escaped.push(c),
        }
    }
    escaped
}

/// About how wide a text is, whatever the font: rather too wide. `size` is that of the font.
pub fn width(content: &str, size: f64) -> f64 {
    let of = |c: char| match c {
        '\u{1100}'.. => 1.0,
        'i' | 'j' | 'l' | '.' | ',' | ':' | ';' | '\'' | '|' | '!' | ' ' | '(' | ')' | '-' => 0.38,
        'm' | 'w' | 'M' | 'W' | '%' => 0.95,
        'A'..='Z' => 0.72,
        _ => 0.62,
    };
    size * content.chars().map(of).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        let check = |content: &str, expected: &str| assert_eq!(escape(content), expected);
        check("a < b & \"c\" > 'd'", "a &lt; b &amp; &quot;c&quot; &gt; 'd'");
        check("가\n나\u{0}\u{1b}[31m", "가 나[31m");
    }

    #[test]
    fn hangul_is_wider() {
        assert!(width("한국어", 10.0) > width("abc", 10.0));
        assert!(width("", 10.0) == 0.0);
    }
}
