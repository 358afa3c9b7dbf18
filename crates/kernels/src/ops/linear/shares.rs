//! Products of the same rows, cut into shares that keep all threads busy.

use std::ops::Range;

use super::pack::PANEL;

/// Some rows against some panels of one of the products.
pub(crate) struct Share {
    pub(crate) product: usize,
    pub(crate) rows: Range<usize>,
    pub(crate) panels: Range<usize>,
}

/// What a share is at most, where there is enough for all threads.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) rows: usize,
    /// Rows are cut at multiples of this.
    pub(crate) row_step: usize,
    pub(crate) panels: usize,
    /// Panels are taken in multiples of this, but for the last of a product.
    pub(crate) panel_step: usize,
}

/// All rows by all panels of every product, by its number of outputs: first fewer rows, then fewer panels than `sizes` says
/// where there would be less than two shares to a thread.
pub(crate) fn share_out(threads: usize, tokens: usize, outputs: &[usize], sizes: Sizes) -> Vec<Share> {
    let panels_of = |outputs: &usize| outputs.div_ceil(PANEL);
    let enough = 2 * threads;
    let groups: usize = outputs.iter().map(|n| panels_of(n).div_ceil(sizes.panels)).sum();
    let blocks = tokens.div_ceil(sizes.rows).max(enough.div_ceil(groups.max(1)));
    let rows = tokens.div_ceil(blocks).next_multiple_of(sizes.row_step).max(sizes.row_step);
    let panels: usize = outputs.iter().map(panels_of).sum();
    let at_once = (panels * tokens.div_ceil(rows) / enough).clamp(1, sizes.panels) / sizes.panel_step
        * sizes.panel_step;
    let at_once = at_once.max(sizes.panel_step);
    let mut shares = Vec::new();
    for first in (0..tokens).step_by(rows) {
        for (product, outputs) in outputs.iter().enumerate() {
            let panels = panels_of(outputs);
            shares.extend((0..panels).step_by(at_once).map(|panel| Share {
                product,
                rows: first..tokens.min(first + rows),
                panels: panel..panels.min(panel + at_once),
            }));
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_output_is_in_one_share_and_all_threads_have_some() {
        let sizes = Sizes { rows: 48, row_step: 6, panels: 4, panel_step: 1 };
        for threads in [1, 2, 64] {
            for tokens in [0, 1, 5, 47, 48, 49, 1000] {
                for outputs in [&[1usize][..], &[16, 17], &[1792, 512, 512], &[0, 40]] {
                    let shares = share_out(threads, tokens, outputs, sizes);
                    let mut seen = vec![0; outputs.len()];
                    for share in &shares {
                        assert!(share.rows.start % sizes.row_step == 0 && share.rows.len() <= sizes.rows);
                        assert!((1..=sizes.panels).contains(&share.panels.len()));
                        seen[share.product] += share.rows.len() * share.panels.len();
                    }
                    let expected: Vec<usize> = outputs.iter().map(|n| tokens * n.div_ceil(PANEL)).collect();
                    assert_eq!(seen, expected, "{threads} threads, {tokens} rows, {outputs:?}");
                    let most = expected.iter().sum::<usize>() / sizes.row_step;
                    assert!(
                        shares.len() >= threads.min(most),
                        "{threads} threads, {tokens} rows, {outputs:?}"
                    );
                }
            }
        }
    }
}
