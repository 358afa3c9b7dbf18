use super::*;

/// Hashed pairs of characters: knows nothing, and finds what is written alike.
struct Bigrams {
    instructions: Vec<Option<String>>,
}

impl Embedder for Bigrams {
    fn name(&self) -> &str {
        "bigrams"
    }

    fn embed(&mut self, texts: &[String], instruction: Option<&str>) -> Result<Vec<Vec<f32>>> {
        self.instructions.push(instruction.map(str::to_owned));
        let vector = |text: &String| {
            let mut vector = vec![0.0_f32; 1027];
            let chars: Vec<char> = text.chars().filter(|c| c.is_alphanumeric()).collect();
            for pair in chars.windows(2) {
                let hash = u64::from(pair[0]).wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    ^ u64::from(pair[1]).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
                vector[(hash >> 20) as usize % 1027] += 1.0;
            }
            vector.iter_mut().for_each(|x| *x = x.sqrt());
            vector
        };
        Ok(texts.iter().map(vector).collect())
    }
}

fn run_on(source: &Source, task: &str, limit: Option<usize>) -> (Outcome, Vec<Option<String>>) {
    let mut bigrams = Bigrams { instructions: Vec::new() };
    let outcome = run(&mut bigrams, source, task, limit).unwrap();
    (outcome, bigrams.instructions)
}

#[test]
fn files_of_the_user() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "sts/own.tsv",
        "sentence1\tsentence2\tscore\nred house\tred house\t5\nred house\tred mouse\t4\nred house\tblue sky\t0\n",
    );
    write(
        "beir/own/corpus.jsonl",
        "{\"_id\": \"a\", \"title\": \"Tea\", \"text\": \"from leaves\"}\n{\"_id\": \"b\", \"text\": \"stones\"}\n{\"_id\": \"c\", \"text\": \"tea leaves\"}\n",
    );
    write(
        "beir/own/queries.jsonl",
        "{\"_id\": \"1\", \"text\": \"tea leaves?\"}\n{\"_id\": \"2\", \"text\": \"nobody judged\"}\n",
    );
    write("beir/own/qrels/test.tsv", "query-id\tcorpus-id\tscore\n1\ta\t1\n1\tc\t2\n");
    let source = Source::new(folder.path());
    let (outcome, instructions) = run_on(&source, "sts/own", None);
    assert_eq!((outcome.metrics[0].name.as_str(), outcome.metrics[0].value), ("cosine_spearman", 100.0));
    assert!(instructions.iter().all(Option::is_some));
    let (outcome, instructions) = run_on(&source, "beir/own", None);
    assert_eq!(
        (outcome.metrics[0].name.as_str(), outcome.metrics[0].value, outcome.metrics[0].n),
        ("ndcg_at_10", 100.0, 1)
    );
    assert_eq!(instructions.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false]);
    assert_eq!(source.manifest().len(), 4);

    let error = |task: &str| {
        let mut bigrams = Bigrams { instructions: Vec::new() };
        run(&mut bigrams, &source, task, None).unwrap_err().to_string()
    };
    assert_eq!(error("stsb"), "no task or suite is called \"stsb\"");
    assert!(error("beir/other").contains("beir/other/qrels/test.tsv"));
    write("sts/broken.tsv", "sentence1\tsentence2\tscore\na\tb\tmuch\n");
    assert!(error("sts/broken").ends_with("row 1: expected a number as the score, got \"much\""));
    write("beir/own/qrels/test.tsv", "query-id\tcorpus-id\tscore\n9\ta\t1\n");
    assert!(error("beir/own").ends_with("expected queries and passages, got 0 and 3"));
}

#[test]
fn vectors_are_checked() {
    struct Fixed(Vec<Vec<f32>>);
    impl Embedder for Fixed {
        fn name(&self) -> &str {
            "fixed"
        }
        fn embed(&mut self, _: &[String], _: Option<&str>) -> Result<Vec<Vec<f32>>> {
            Ok(self.0.clone())
        }
    }
    let texts = ["a".to_owned(), "b".to_owned()];
    let check = |vectors: &[&[f32]], expected: &str| {
        let vectors = vectors.iter().map(|vector| vector.to_vec()).collect();
        let error = normalised(&mut Fixed(vectors), &texts, None).unwrap_err().to_string();
        assert_eq!(error, format!("fixed: {expected}"));
    };
    check(&[&[1.0]], "expected 2 vectors, got 1");
    check(&[&[1.0], &[1.0, 2.0]], "expected vectors of 1 numbers, got one of 2");
    check(&[&[f32::NAN], &[1.0]], "a vector holds numbers that are not finite");
    let unit = normalised(&mut Fixed(vec![vec![3.0, 4.0], vec![0.0, 0.0]]), &texts, None).unwrap();
    assert_eq!(unit, [vec![0.6, 0.8], vec![0.0, 0.0]]);
    let a: Vec<f32> = (0..19).map(|n| n as f32).collect();
    assert_eq!(dot(&a, &a), 2109.0);
}

#[test]
fn real_data() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/eval/data");
    if !root.exists() {
        println!("skipped: no shared data");
        return;
    }
    let source = Source::new(root);
    // What the same vectors give in Python, with its own ranks and its own search.
    let check = |task: &str, limit, n: usize, expected: f64| {
        let (outcome, _) = run_on(&source, task, limit);
        let headline = &outcome.metrics[0];
        println!("{task}: {:?}", outcome.metrics);
        assert!((headline.value - expected).abs() < 0.01 && headline.n == n, "{task}: {headline:?}");
    };
    check("klue_sts", None, 519, 26.150);
    check("korsts", None, 1379, 58.967);
    check("korquad_retrieval", Some(300), 300, 88.469);
}
