//! In which language a text is written.
//!
//! The references use langdetect 1.0.9 (IFEval; random, and unsure of texts in capitals) and MediaPipe's detector (KoMT-Bench);
//! here it is the crate whatlang, which is deterministic, among langdetect's languages, and beside it the function words of
//! Swahili, which whatlang does not know and IFEval asks for.

use whatlang::{Detector, Lang};

/// What langdetect knows and whatlang too, by ISO 639-1.
const LANGUAGES: &[(Lang, &str)] = &[
    (Lang::Afr, "af"),
    (Lang::Ara, "ar"),
    (Lang::Bul, "bg"),
    (Lang::Ben, "bn"),
    (Lang::Cat, "ca"),
    (Lang::Ces, "cs"),
    (Lang::Cym, "cy"),
    (Lang::Dan, "da"),
    (Lang::Deu, "de"),
    (Lang::Ell, "el"),
    (Lang::Eng, "en"),
    (Lang::Spa, "es"),
    (Lang::Est, "et"),
    (Lang::Pes, "fa"),
    (Lang::Fin, "fi"),
    (Lang::Fra, "fr"),
    (Lang::Guj, "gu"),
    (Lang::Heb, "he"),
    (Lang::Hin, "hi"),
    (Lang::Hrv, "hr"),
    (Lang::Hun, "hu"),
    (Lang::Ind, "id"),
    (Lang::Ita, "it"),
    (Lang::Jpn, "ja"),
    (Lang::Kan, "kn"),
    (Lang::Kor, "ko"),
    (Lang::Lit, "lt"),
    (Lang::Lav, "lv"),
    (Lang::Mkd, "mk"),
    (Lang::Mal, "ml"),
    (Lang::Mar, "mr"),
    (Lang::Nep, "ne"),
    (Lang::Nld, "nl"),
    (Lang::Nob, "no"),
    (Lang::Pan, "pa"),
    (Lang::Pol, "pl"),
    (Lang::Por, "pt"),
    (Lang::Ron, "ro"),
    (Lang::Rus, "ru"),
    (Lang::Slk, "sk"),
    (Lang::Slv, "sl"),
    (Lang::Swe, "sv"),
    (Lang::Tam, "ta"),
    (Lang::Tel, "te"),
    (Lang::Tha, "th"),
    (Lang::Tgl, "tl"),
    (Lang::Tur, "tr"),
    (Lang::Ukr, "uk"),
    (Lang::Urd, "ur"),
    (Lang::Vie, "vi"),
    (Lang::Cmn, "zh"),
];

/// Function words of Swahili that are rare in other languages of the Latin script.
const SWAHILI: &[&str] = &[
    "ya",
    "wa",
    "kwa",
    "katika",
    "cha",
    "hii",
    "hiyo",
    "huo",
    "yake",
    "yako",
    "wako",
    "yetu",
    "pia",
    "kuwa",
    "kama",
    "hivyo",
    "lakini",
    "watu",
    "kwenye",
    "kila",
    "hapa",
    "mimi",
    "wewe",
    "wakati",
    "tafadhali",
    "ndiyo",
];

/// The ISO 639-1 code of the language that most of a text is in; None where there is nothing to tell it by.
pub fn detect(text: &str) -> Option<&'static str> {
    if is_swahili(text) {
        return Some("sw");
    }
    let detector = Detector::with_allowlist(LANGUAGES.iter().map(|&(lang, _)| lang).collect());
    let found = detector.detect_lang(text)?;
    LANGUAGES.iter().find(|(lang, _)| *lang == found).map(|&(_, code)| code)
}

/// A twentieth of the words are function words of Swahili, and not all the same one.
fn is_swahili(text: &str) -> bool {
    let text = text.to_lowercase();
    let words = text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
    let (mut total, mut found, mut distinct) = (0, 0, [false; SWAHILI.len()]);
    for word in words {
        total += 1;
        if let Some(index) = SWAHILI.iter().position(|&known| known == word) {
            found += 1;
            distinct[index] = true;
        }
    }
    found * 20 >= total && distinct.iter().filter(|&&seen| seen).count() >= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        assert_eq!(detect(text), expected, "{text}");
    }

    #[test]
    fn languages() {
        check("The weather is good today and we will go to the park.", Some("en"));
        check("THE WEATHER IS GOOD TODAY AND WE WILL GO TO THE PARK.", Some("en"));
        check("오늘은 날씨가 좋아서 공원에 갑니다.", Some("ko"));
        check("Leo hali ya hewa ni nzuri na tutaenda kwenye bustani kwa miguu.", Some("sw"));
        check("El tiempo es bueno hoy y ya vamos al parque con la familia.", Some("es"));
        check("Danas je lijepo vrijeme i idemo u park na kavu ili na ručak.", Some("hr"));
        check("Maganda ang panahon ngayon at pupunta kami sa parke na malapit.", Some("tl"));
        check("आज मौसम अच्छा है और हम पार्क जाएंगे।", Some("hi"));
        check("今日は天気がいいので公園に行きます。", Some("ja"));
        check("12 + 3 = 15", None);
        check("", None);
    }
}
