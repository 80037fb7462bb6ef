"""500 texts in 20 scripts, code, emoji, control characters and the texts of special tokens."""

import random

SCRIPTS = {
    'latin': "The naïve café’s “quotes” cost £12.50 – don’t they? I’LL pay, we've TO'D él ÉTÉ.",
    'cyrillic': 'Привет, как дела? Съешь ещё этих мягких французских булок № 42.',
    'greek': 'Ξεσκεπάζω την ψυχοφθόρα βδελυγμία, Ωμέγα ΆΛΦΑ; 3,14·10',
    'arabic': 'مرحبا بالعالم، كيف حالُكَ؟ ٣٤٥ رقم ۱۲۳',
    'hebrew': 'שָׁלוֹם עולם, מה שלומך? "צה״ל" 5',
    'devanagari': 'नमस्ते दुनिया, आप कैसे हैं? क्षत्रिय ज्ञान १२३',
    'bengali': 'ওহে বিশ্ব, তুমি কেমন আছো? ৪৫৬',
    'tamil': 'வணக்கம் உலகம், எப்படி இருக்கிறீர்கள்? ௧௨',
    'telugu': 'నమస్కారం ప్రపంచం, మీరు ఎలా ఉన్నారు? ౩౪',
    'thai': 'สวัสดีชาวโลก คุณเป็นอย่างไรบ้าง ๕๖๗',
    'lao': 'ສະບາຍດີຊາວໂລກ ເຈົ້າສະບາຍດີບໍ ໑໒',
    'khmer': 'សួស្តីពិភពលោក តើអ្នកសុខសប្បាយទេ ១២៣',
    'georgian': 'გამარჯობა მსოფლიო, როგორ ხარ?',
    'armenian': 'Բարեւ աշխարհ, ինչպե՞ս ես։ ԵՒ',
    'ethiopic': 'ሰላም ልዑል፣ እንዴት ነህ? ፩፪፫',
    'han': '你好，世界！今天天气怎么样？第１２章。漢字〇㐀𠮷',
    'kana': 'こんにちは世界。ｶﾀｶﾅ カタカナ「ひらがな」ー々',
    'hangul': '안녕하세요 세계, 어떻게 지내세요? ㄱㄴㄷ 한글',
    'tibetan': 'བཀྲ་ཤིས་བདེ་ལེགས། འཛམ་གླིང་ ༡༢',
    'cherokee': 'ᎣᏏᏲ ᎡᎶᎯ, ᏙᎯᏧ? ꭰꭱ',
}
OTHERS = {
    'code': 'def f(x):\n\treturn {"a": x ** 2, \'b\': [1, 22, 333, 4444]}  # no\r\n\r\n'
            '    if (a<=b) {\n        i++; }\n\n\n#include <stdio.h>\n',
    'numbers': '1234567 and 3.14159e-10, 0xFF, 12:34:56, ½ ² ⅷ Ⅻ ①',
    'emoji': '👩‍👩‍👧‍👦 family 🏳️‍🌈 flag 👍🏽 🇫🇷 ❤️ ☃ 🦾🤖',
    'blanks': '   a   b\t\t c \u00a0\u2003\u200b\u3000 d \n\n  \r\n \n e   ',
    'controls': 'a\x01b\x07\x08\x0b\x0c\x1b[31mred\x1b[0m\x7f\x85\u200e\u202e\ufeff\u2028',
    'marks': 'a\u0301e\u0308 Z\u0351\u036b\u0343 ﬁ ǅ İı ß ẞ K Å',
    'signs': '!"#$%&\'()*+,-./:;<=>?@[\\]^_`{|}~ ‽ ¿¡ «» €¥₿ →⇒ ∀x∈ℝ ≠ ∞',
    'special': '<|im_start|>user\nHi<|im_end|>\n<|endoftext|></s><s> <bos><start_of_turn>model\n'
               '<end_of_turn><unk><|eot_id|>[INST] x [/INST]<0x0A>',
    'contractions': "I'm you're HE'S they'LL we'VE 'tis o'clock rock'n'roll d'accord I'D 'S",
    'long': 'Donaudampfschifffahrtsgesellschaft' * 3 + 'x' * 80 + '=' * 40 + '\n' * 9 + ' ' * 37,
}


def world_texts(count: int = 500) -> list[str]:
    """The texts above whole, and pieces of them joined at random; always the same ones."""
    whole = [*SCRIPTS.values(), *OTHERS.values()]
    texts, choose = ['', ' ', '\n', *whole], random.Random(16)
    while len(texts) < count:
        pieces = []
        for _ in range(choose.randint(1, 4)):
            text = choose.choice(whole)
            start = choose.randrange(len(text))
            pieces.append(text[start:start + choose.randint(1, 30)])
        texts.append(choose.choice(['', '', ' ', '\n']).join(pieces))
    return texts
