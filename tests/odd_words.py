"""Words that tokenizers stumble over, for property tests."""

from hypothesis import strategies as st

ODD = [
    *(
        "e\u0301",
        "\u0301",
        "हिन्दी",
        "ﬁ",
        "İ",
    ),  # marks, ligatures, a letter with its dot
    *("", " ", "\x00", "\u200b", "\ufe0f", "\u2028"),  # nothing that can be seen
    *("a b", "x\u00a0y", "東京", "👩\u200d👩\u200d👧"),  # several, joined or not
    *("##s", "[SEP]", "x[PAD]y"),  # what tokenizers write themselves
]
WORD = st.sampled_from([*ODD, "Köln", "unbelievably", "x-2.5%"]) | st.text(max_size=6)
WORDS = st.lists(WORD, max_size=30)
