//! What is hidden, how it is asked for, and how an answer is scored. The tables of words are our own.

use super::Language;
use crate::random::PythonRandom;

/// A sentence that is hidden in a haystack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needle {
    /// Up to where the answer begins, without a space at the end: a base model goes on from here.
    pub beginning: String,
    /// The rest of the sentence without its full stop: what is to be found.
    pub answer: String,
    /// Asks an instruct model for the answer.
    pub question: String,
}

/// Cities and things to do, for needles that are drawn. The well-known needle's own are not among them.
struct Words {
    cities: &'static [&'static str],
    // the parts of an answer, in the order of the language
    first: &'static [&'static str],
    then: &'static [&'static str],
    last: &'static [&'static str],
}

const ENGLISH: Words = Words {
    cities: &[
        "Lisbon", "Oslo", "Busan", "Naples", "Quito", "Hanoi", "Dublin", "Prague", "Nairobi", "Boston",
        "Lyon", "Kyoto", "Cairo", "Vienna", "Toronto", "Lima", "Athens", "Bergen", "Porto", "Seville",
        "Denver", "Turin", "Mumbai", "Riga",
    ],
    first: &[
        "drink a coffee",
        "rent a bicycle",
        "buy a map",
        "visit the market",
        "climb the tower",
        "take the ferry",
        "read a novel",
        "feed the birds",
        "draw the bridge",
        "eat a pancake",
        "try the soup",
        "watch the boats",
        "learn a song",
        "ride the tram",
        "taste the cheese",
        "count the steps",
        "paint a door",
        "borrow a kite",
        "fly a drone",
        "cook some rice",
    ],
    then: &[
        "walk along the river",
        "sleep under a tree",
        "listen to the choir",
        "look at the stars",
        "talk to a fisherman",
        "swim in the lake",
        "write a postcard",
        "dance in the square",
        "wait for the sunset",
        "rest on the stairs",
        "play chess outside",
        "follow the old wall",
        "pick some apples",
        "visit the small museum",
        "sit by the fountain",
        "photograph the cats",
        "row to the island",
        "search for shells",
        "admire the gardens",
        "hum a melody",
    ],
    last: &[
        "on a rainy day",
        "before noon",
        "after dark",
        "in early spring",
        "on a quiet Sunday",
        "at five o'clock",
        "in the cold",
        "during the festival",
        "with a friend",
        "without any money",
        "on a windy day",
        "at low tide",
    ],
};

const KOREAN: Words = Words {
    cities: &[
        "부산", "대구", "강릉", "전주", "여수", "춘천", "제주", "목포", "경주", "군산", "통영", "안동",
        "속초", "청주", "포항", "진주", "남원", "공주", "원주", "태안",
    ],
    first: &[
        "비 오는 날",
        "해 질 무렵",
        "이른 아침에",
        "늦은 밤에",
        "조용한 일요일에",
        "이른 봄에",
        "첫눈 오는 날",
        "장날 아침에",
        "바람 부는 날",
        "점심을 먹고",
        "친구와 함께",
        "돈 없이",
    ],
    then: &[
        "강둑에 앉아",
        "탑에 올라가",
        "시장에 들러",
        "나무 아래에 누워",
        "배를 타고 나가",
        "자전거를 빌려",
        "골목을 걸으며",
        "호숫가에 서서",
        "성벽을 따라 걸으며",
        "섬까지 노를 저어",
        "작은 박물관에 가서",
        "분수 옆에서",
        "돌계단에서 쉬며",
        "찻집에 들어가",
        "바닷가로 내려가",
        "절 마당에서",
    ],
    last: &[
        "커피를 마시는",
        "엽서를 쓰는",
        "별을 보는",
        "노래를 배우는",
        "국수를 먹는",
        "연을 날리는",
        "사과를 따는",
        "고양이를 찍는",
        "다리를 그리는",
        "새에게 모이를 주는",
        "조개를 줍는",
        "소설을 읽는",
        "바둑을 두는",
        "떡을 맛보는",
        "파도 소리를 듣는",
        "치즈를 굽는",
    ],
};

impl Needle {
    /// The needle of the published plots, or its Korean counterpart. Source: LLMTest_NeedleInAHaystack 7b90d285
    /// (`needlehaystack/llm_needle_haystack_tester.py`).
    pub fn classic(language: Language) -> Self {
        match language {
            Language::En => {
                Needle::english("San Francisco", "eat a sandwich and sit in Dolores Park on a sunny day")
            }
            Language::Ko => Needle::korean("서울", "맑은 날 한강 공원에 앉아 김밥을 먹는 것이다"),
        }
    }

    /// Another city and other things to do; none of the cities in `taken`, as long as there are others.
    pub fn drawn(language: Language, random: &mut PythonRandom, taken: &[Needle]) -> Self {
        let words = match language {
            Language::En => &ENGLISH,
            Language::Ko => &KOREAN,
        };
        let is_taken = |city: &str| taken.iter().any(|needle| needle.beginning.contains(city));
        let free: Vec<&str> = words.cities.iter().copied().filter(|city| !is_taken(city)).collect();
        let cities = if free.is_empty() { words.cities } else { &free };
        let [city, first, then, last] = [cities, words.first, words.then, words.last]
            .map(|list| random.choice(list).copied().unwrap_or_default());
        match language {
            Language::En => Needle::english(city, &format!("{first} and {then} {last}")),
            Language::Ko => Needle::korean(city, &format!("{first} {then} {last} 것이다")),
        }
    }

    fn english(city: &str, answer: &str) -> Self {
        Needle {
            beginning: format!("The best thing to do in {city} is"),
            answer: answer.into(),
            question: format!("What is the best thing to do in {city}?"),
        }
    }

    fn korean(city: &str, answer: &str) -> Self {
        Needle {
            beginning: format!("{city}에서 할 수 있는 가장 좋은 일은"),
            answer: answer.into(),
            question: format!("{city}에서 할 수 있는 가장 좋은 일은 무엇인가?"),
        }
    }

    /// The whole sentence.
    pub fn sentence(&self) -> String {
        format!("{} {}.", self.beginning, self.answer)
    }

    /// Whether a response holds the answer as it stands, whatever the case of letters.
    pub fn is_contained(&self, response: &str) -> bool {
        response.to_lowercase().contains(&self.answer.to_lowercase())
    }

    /// The part of the answer's words that a response has, each as often as it comes: recall of ROUGE-1 (Lin 2004). A word is
    /// letters and digits, in lower case; nothing is stemmed.
    pub fn recall(&self, response: &str) -> f64 {
        let mut there = words(response);
        let wanted = words(&self.answer);
        let found = wanted.iter().filter(|word| match there.iter().position(|other| other == *word) {
            Some(place) => {
                there.swap_remove(place);
                true
            }
            None => false,
        });
        let found = found.count();
        found as f64 / wanted.len().max(1) as f64
    }
}

fn words(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_scored() {
        let needle = Needle::classic(Language::En);
        let check = |response, contained, recall: f64| {
            assert_eq!(needle.is_contained(response), contained, "{response:?}");
            assert!(
                (needle.recall(response) - recall).abs() < 1e-12,
                "{response:?}: {}",
                needle.recall(response)
            );
        };
        check("Eat a sandwich and sit in Dolores Park on a sunny day.", true, 1.0);
        check("", false, 0.0);
        check("Sit in Dolores Park!", false, 4.0 / 12.0);
        // "a" is wanted twice and there once
        check("a sandwich", false, 2.0 / 12.0);
        let needle = Needle::classic(Language::Ko);
        assert!(needle.is_contained("답: 맑은 날 한강 공원에 앉아 김밥을 먹는 것이다."));
        assert_eq!(needle.recall("한강 공원에 앉아"), 3.0 / 8.0);
    }

    #[test]
    fn drawn_needles_differ() {
        for language in [Language::En, Language::Ko] {
            let mut random = PythonRandom::new(3);
            let mut needles = vec![Needle::classic(language)];
            for _ in 0..15 {
                let needle = Needle::drawn(language, &mut random, &needles);
                assert!(needles.iter().all(|other| other.beginning != needle.beginning), "{needle:?}");
                assert_eq!(needle.recall(&needle.sentence()), 1.0);
                needles.push(needle);
            }
            println!("{}", needles.last().unwrap().sentence());
        }
    }
}
