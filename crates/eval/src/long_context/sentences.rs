//! Plain sentences without end, in English and Korean, for haystacks: nobody owns them, they are the same for the same seed, and
//! they say nothing that a needle says.
//!
//! This file is mostly a table of data: frames with slots, and what may stand in a slot. `{slot}` is filled with a word that the
//! sentence does not have yet; `{slot/이/가}` is followed by the particle that fits a final consonant or a vowel.

use std::collections::HashSet;

use super::Language;
use crate::random::PythonRandom;

/// Frames and slots of one language.
struct Grammar {
    frames: &'static [&'static str],
    slots: &'static [(&'static str, &'static [&'static str])],
}

const ENGLISH: Grammar = Grammar {
    frames: &[
        "{time}, {who} carried {thing} to {place}.",
        "{who} asked {who} whether {thing} had been left near {place}.",
        "Nobody at {place} remembered who had paid for {thing}.",
        "{who} looked for {thing} {time}, but found only {thing}.",
        "It rained {time}, so {who} waited at {place} with {who}.",
        "{who} painted {thing} while {who} told an old story.",
        "The road to {place} was closed {time}.",
        "{who} had never liked {thing}, and said so {time}.",
        "Behind {place} there was {thing} that belonged to {who}.",
        "{who} promised {who} to repair {thing} {time}.",
        "People said that {place} had been built by {who}.",
        "{time}, a letter about {thing} arrived for {who}.",
        "{who} and {who} walked past {place} without a word.",
        "{thing} cost more at {place} than anywhere else.",
        "{time}, {who} dreamed of {place} and of {thing}.",
        "{who} wrote down everything that {who} knew about {thing}.",
        "There was a light in {place}, and {who} wondered who was there.",
        "{who} sold {thing} to {who} and bought {thing} instead.",
        "The dog followed {who} as far as {place}.",
        "{who} taught {who} how to take care of {thing}.",
        "When the wind turned {time}, {who} closed the windows of {place}.",
        "{who} measured {thing} twice and took it back to {place}.",
        "Every year {who} invites {who} to {place}.",
        "{thing} was hidden under a blanket {time}.",
        "{who} could hear {who} singing from {place}.",
        "Without {thing}, {who} would not have found the way to {place}.",
    ],
    slots: &[
        (
            "who",
            &[
                "the baker",
                "the old teacher",
                "a young sailor",
                "the clockmaker",
                "my neighbour",
                "the postman",
                "the gardener",
                "a tired nurse",
                "the carpenter",
                "the librarian",
                "her cousin",
                "his uncle",
                "the miller",
                "a quiet student",
                "the tailor",
                "the shepherd",
                "the mayor",
                "an engineer",
                "the fisherman",
                "the violinist",
                "the cook",
                "a travelling merchant",
                "the farmer's son",
                "the pharmacist",
                "a stranger",
                "the painter",
                "the bus driver",
                "our landlady",
                "the younger brother",
                "the innkeeper",
                "the photographer",
                "the janitor",
            ],
        ),
        (
            "place",
            &[
                "the harbour",
                "the mill",
                "the railway station",
                "the north gate",
                "the empty theatre",
                "the market square",
                "the lighthouse",
                "the school yard",
                "the stone bridge",
                "the village hall",
                "the orchard",
                "the workshop",
                "the river bank",
                "the old castle",
                "the post office",
                "the hospital",
                "the tea house",
                "the mountain hut",
                "the town library",
                "the salt warehouse",
                "the bakery",
                "the crossroads",
                "the greenhouse",
                "the ferry landing",
                "the back room",
                "the chapel",
                "the brick factory",
                "the tram depot",
                "the long corridor",
                "the cellar",
            ],
        ),
        (
            "thing",
            &[
                "a wooden chair",
                "the blue lamp",
                "an iron key",
                "a basket of pears",
                "the broken radio",
                "a roll of cloth",
                "the heavy trunk",
                "a silver spoon",
                "the torn map",
                "a jar of honey",
                "the garden ladder",
                "a box of nails",
                "the copper kettle",
                "a pair of boots",
                "the brass bell",
                "a stack of newspapers",
                "the kitchen clock",
                "a bag of flour",
                "the green umbrella",
                "a glass bottle",
                "the rusty saw",
                "a bundle of letters",
                "the small boat",
                "a woollen scarf",
                "the picture frame",
                "a cracked mirror",
                "the sewing machine",
                "a barrel of cider",
                "the leather suitcase",
                "a set of brushes",
                "the spare wheel",
                "a loaf of rye bread",
                "the tin soldier",
                "a handful of coins",
                "the fishing net",
                "a pot of ink",
            ],
        ),
        (
            "time",
            &[
                "in the morning",
                "late at night",
                "on Tuesday",
                "after the harvest",
                "before breakfast",
                "last winter",
                "in early spring",
                "at noon",
                "during the storm",
                "a week later",
                "on the first of May",
                "that evening",
                "two days before the fair",
                "on a grey afternoon",
                "soon after the wedding",
                "in the third year",
                "when the snow melted",
                "at the end of August",
                "between two meetings",
                "shortly before dawn",
            ],
        ),
    ],
};

const KOREAN: Grammar = Grammar {
    frames: &[
        "{time} {who/은/는} {thing/을/를} 들고 {place/으로/로} 갔다.",
        "{who/은/는} {who}에게 {thing/이/가} 어디에 있는지 물었다.",
        "{place}에서는 아무도 {thing/을/를} 산 사람을 기억하지 못했다.",
        "{time} {who/이/가} {thing/을/를} 찾았지만 {thing}밖에 없었다.",
        "{time} 비가 와서 {who/은/는} {place}에서 {who/을/를} 기다렸다.",
        "{who/이/가} 옛날이야기를 하는 동안 {who/은/는} {thing/을/를} 고쳤다.",
        "{place} 앞길은 {time} 막혀 있었다.",
        "{who/은/는} {thing/을/를} 좋아한 적이 없다고 말했다.",
        "{place} 뒤에는 {who/이/가} 두고 간 {thing/이/가} 있었다.",
        "{who/은/는} {who}에게 {time} {thing/을/를} 돌려주겠다고 약속했다.",
        "사람들은 {place/을/를} {who/이/가} 지었다고 했다.",
        "{time} {who}에게 {thing}에 관한 편지가 왔다.",
        "{who/과/와} {who/은/는} 말없이 {place/을/를} 지나갔다.",
        "{place}에서는 {thing/이/가} 다른 곳보다 비쌌다.",
        "{time} {who/은/는} {place}에 가는 꿈을 꾸었다.",
        "{who/은/는} {thing}에 대해 아는 것을 모두 적어 두었다.",
        "{place}에 불이 켜져 있어서 {who/은/는} 누가 있는지 궁금했다.",
        "{who/은/는} {thing/을/를} 팔고 대신 {thing/을/를} 샀다.",
        "강아지가 {who/을/를} 따라 {place}까지 왔다.",
        "{who/은/는} {who}에게 {thing} 다루는 법을 가르쳐 주었다.",
        "{time} 바람이 바뀌자 {who/이/가} {place}의 창문을 닫았다.",
        "해마다 {who/은/는} {who/을/를} {place/으로/로} 초대한다.",
        "{thing/은/는} {time}까지 담요 아래에 숨겨져 있었다.",
        "{place}에서 {who/이/가} 노래하는 소리가 들렸다.",
        "{thing/이/가} 없었다면 {who/은/는} {place/을/를} 찾지 못했을 것이다.",
        "{who/은/는} {time} {place}에서 혼자 점심을 먹었다.",
    ],
    slots: &[
        (
            "who",
            &[
                "빵집 주인",
                "늙은 선생님",
                "젊은 선원",
                "시계 장수",
                "옆집 아주머니",
                "우체부",
                "정원사",
                "간호사",
                "목수",
                "도서관 사서",
                "사촌 동생",
                "삼촌",
                "방앗간 주인",
                "조용한 학생",
                "재봉사",
                "양치기",
                "이장",
                "기술자",
                "어부",
                "바이올린 연주자",
                "요리사",
                "떠돌이 상인",
                "농부",
                "약사",
                "낯선 사람",
                "화가",
                "버스 기사",
                "하숙집 주인",
                "막내",
                "여관 주인",
                "사진사",
                "경비원",
            ],
        ),
        (
            "place",
            &[
                "항구",
                "방앗간",
                "기차역",
                "북쪽 문",
                "빈 극장",
                "시장",
                "등대",
                "학교 운동장",
                "돌다리",
                "마을 회관",
                "과수원",
                "작업장",
                "강가",
                "옛 성",
                "우체국",
                "병원",
                "찻집",
                "산장",
                "읍내 도서관",
                "소금 창고",
                "빵집",
                "네거리",
                "온실",
                "나루터",
                "뒷방",
                "예배당",
                "벽돌 공장",
                "전차 차고",
                "긴 복도",
                "지하실",
            ],
        ),
        (
            "thing",
            &[
                "나무 의자",
                "파란 등",
                "쇠 열쇠",
                "배 한 바구니",
                "고장 난 라디오",
                "천 한 필",
                "무거운 궤짝",
                "은수저",
                "찢어진 지도",
                "꿀단지",
                "사다리",
                "못 상자",
                "구리 주전자",
                "장화 한 켤레",
                "놋쇠 종",
                "신문 뭉치",
                "부엌 시계",
                "밀가루 자루",
                "초록 우산",
                "유리병",
                "녹슨 톱",
                "편지 묶음",
                "작은 배",
                "털목도리",
                "액자",
                "금 간 거울",
                "재봉틀",
                "식초 통",
                "가죽 가방",
                "붓 한 벌",
                "여분의 바퀴",
                "호밀빵",
                "양철 인형",
                "동전 한 줌",
                "그물",
                "잉크병",
            ],
        ),
        (
            "time",
            &[
                "아침에",
                "밤늦게",
                "화요일에",
                "추수가 끝난 뒤",
                "아침을 먹기 전에",
                "지난겨울",
                "이른 봄에",
                "정오에",
                "폭풍이 치던 날",
                "일주일 뒤",
                "오월 첫날",
                "그날 저녁",
                "장날 이틀 전",
                "흐린 오후에",
                "잔치가 끝나고",
                "삼 년째 되던 해",
                "눈이 녹을 무렵",
                "팔월 말에",
                "두 모임 사이에",
                "해 뜨기 조금 전에",
            ],
        ),
    ],
};

/// An endless iterator over sentences, each with the space before it. No sentence comes twice.
pub struct Sentences {
    grammar: &'static Grammar,
    random: PythonRandom,
    seen: HashSet<String>,
}

impl Sentences {
    /// The same for the same seed.
    pub fn new(language: Language, seed: u64) -> Self {
        let grammar = match language {
            Language::En => &ENGLISH,
            Language::Ko => &KOREAN,
        };
        Sentences { grammar, random: PythonRandom::new(seed), seen: HashSet::new() }
    }

    fn draw(&mut self) -> String {
        let mut sentence = String::new();
        let mut rest = self.choose(self.grammar.frames);
        let mut used: Vec<&str> = Vec::new();
        while let Some((before, after)) = rest.split_once('{') {
            sentence += before;
            let (slot, after) = after.split_once('}').unwrap_or((after, ""));
            let mut parts = slot.split('/');
            let name = parts.next().unwrap_or_default();
            let words =
                self.grammar.slots.iter().find(|(slot, _)| *slot == name).map_or(&[][..], |(_, words)| words);
            let mut word = self.choose(words);
            while used.contains(&word) {
                word = self.choose(words);
            }
            used.push(word);
            sentence += word;
            if let (Some(closed), Some(open)) = (parts.next(), parts.next()) {
                sentence += particle(word, closed, open);
            }
            rest = after;
        }
        capitalised(&(sentence + rest))
    }

    fn choose(&mut self, words: &'static [&'static str]) -> &'static str {
        self.random.choice(words).copied().unwrap_or_default()
    }
}

impl Iterator for Sentences {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        // There are millions of sentences, so that this ends long before they do.
        loop {
            let sentence = self.draw();
            if self.seen.insert(sentence.clone()) {
                return Some(format!(" {sentence}"));
            }
        }
    }
}

/// The form of a particle after a word: `closed` after a final consonant, `open` after a vowel; 로 follows ㄹ as well.
pub fn particle<'a>(word: &str, closed: &'a str, open: &'a str) -> &'a str {
    let last = word.chars().next_back().unwrap_or_default();
    let final_consonant = match last {
        '가'..='힣' => (u32::from(last) - u32::from('가')) % 28,
        _ => 0,
    };
    if final_consonant == 0 || final_consonant == 8 && open == "로" { open } else { closed }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().collect::<String>() + chars.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_whole_and_do_not_repeat() {
        for language in [Language::En, Language::Ko] {
            let sentences: Vec<String> = Sentences::new(language, 7).take(12_000).collect();
            assert_eq!(sentences, Sentences::new(language, 7).take(12_000).collect::<Vec<_>>());
            assert_eq!(sentences.iter().collect::<HashSet<_>>().len(), sentences.len());
            for sentence in &sentences {
                assert!(sentence.starts_with(' ') && sentence.ends_with('.'), "{sentence:?}");
                assert!(!sentence.contains(['{', '}', '/']) && !sentence.contains("  "), "{sentence:?}");
            }
            println!("{}", sentences[..6].concat());
        }
    }

    #[test]
    fn particles_fit() {
        let check =
            |word, closed, open, expected| assert_eq!(particle(word, closed, open), expected, "{word}");
        check("항구", "을", "를", "를");
        check("시장", "을", "를", "을");
        check("시장", "으로", "로", "으로");
        check("교실", "으로", "로", "로");
        check("Seoul", "이", "가", "가");
    }

    #[test]
    fn slots_have_words() {
        for grammar in [&ENGLISH, &KOREAN] {
            for frame in grammar.frames {
                for slot in frame.split('{').skip(1) {
                    let name = slot.split(['}', '/']).next().unwrap();
                    assert!(
                        grammar.slots.iter().any(|(slot, words)| *slot == name && words.len() > 9),
                        "{frame}"
                    );
                }
            }
        }
    }
}
