//! A table of data: common English words, one list for each part of speech, compiled for this project. Two lists make the keys of
//! needles (`adjective-noun`), all three the lists of words that are counted.

/// Adjectives.
pub const ADJECTIVES: &str = "
able amber ancient angry awake bare basic bitter blank blind bold brave brief bright brisk broad broken calm careful cheap cheerful
chilly civil clean clear clever close cloudy clumsy coarse cold common cool costly crisp crooked cruel curious curly daily damp dark
dear deep dense dim dirty distant dizzy double dry dull dusty eager early easy elegant empty equal exact faint fair false famous fancy
fast fierce final fine firm flat fluffy foggy foolish formal fragile frank free fresh friendly frosty full funny gentle giant glad
golden good grand grateful grave great green grey hairy handy happy harsh heavy helpful hidden hollow honest humble hungry icy idle
jolly joyful keen kind large late lazy lean light likely little lively local lonely long loose loud lovely loyal lucky mad major meek
mellow merry mighty mild minor misty mixed modern modest moist muddy narrow native neat new nice noble noisy normal odd old open
orange pale patient perfect plain playful pleasant polite poor proper proud public pure purple quick quiet rapid rare raw ready real
red regular rich ripe rough round royal rude rural rusty sad safe salty scarce secret serious shaded shallow sharp shiny short shy
silent silly silver simple single slim slow small smart smooth soft solid sore sour spare special spicy square stable steady steep
sticky stiff still stormy straight strange strict strong sturdy subtle sudden sunny sweet swift tall tame tender thick thin tidy tight
tiny tired tough true urgent useful usual vague vast violet vivid warm wary weak wealthy weird wet white whole wicked wide wild windy
wise witty wooden worthy yellow young zesty";

/// Nouns.
pub const NOUNS: &str = "
acorn actor address airport album alley almond anchor angle ankle answer apple apron arch arrow artist attic author autumn award badge
bag bakery balcony ball bamboo banana band bank banner barn barrel basin basket bath battery beach bead beam bean bear beard bed bee
beetle bell belt bench berry bicycle bird blanket blossom boat bone bonnet book boot border bottle bowl box branch bread brick bridge
broom brother brush bubble bucket budget building bullet bus bush butter button cabin cabinet cable cactus cake camel camera camp
canal candle candy canoe canvas captain car card carpet carrot cart castle cat cave ceiling cellar chain chair chalk channel chapter
cheese cherry chest chicken child chimney church circle circus citizen city clay clerk cliff clock cloth cloud clover coach coal coast
coat coconut coffee coin collar color comb comet compass concert copper coral cork corn corner cotton couch country court cousin cover
cow crab cradle crane crater cream creek cricket crop crow crown crystal cup curtain cushion dance daughter dawn deck deer desert desk
diamond diary dinner dish doctor dog doll dolphin donkey door dragon drawer dream dress drum duck dust eagle ear earth echo edge egg
elbow elephant engine envelope evening event eye face factory falcon family farm farmer feather fence fern ferry festival field fig
finger fire fish flag flame flower flute fog folder forest fork fortune fountain fox frame friend frog fruit funnel garage garden
garlic gate ghost ginger giraffe glacier glass glove glue goat gold goose grain grape grass guest guide guitar hall hammer hand
handle harbor harp hat hawk hay heart hedge helmet hen herb hill hinge honey hook horn horse hospital hotel hour house iceberg idea
ink insect iron island ivory ivy jacket jar jelly jewel journal journey judge juice jungle kettle key king kitchen kite kitten knee
knife knot ladder lady lake lamb lamp lantern laundry lawn leaf leather lemon letter library lid lily lime lion lizard lobster lock
locket lunch machine magnet mailbox mango map maple marble market mask match meadow meal medal melon message metal meteor milk mill
minute mirror mitten mole monkey month moon morning moth mountain mouse mouth muffin museum mushroom music nail napkin neck necklace
needle neighbor nest net night noodle north nose note notebook novel nurse nut oak oar ocean office olive onion orchard otter oven owl
oyster package paddle page paint palace palm pan panda paper parade park parrot party path peach peacock peanut pear pearl pebble pen
pencil penguin people pepper person phone piano picnic picture pie pigeon pillow pilot pin pine pipe pirate pitcher planet plant plate
plum pocket poem poet pond pony porch port potato pottery powder prince printer prize pumpkin puppy purse puzzle quarry queen quilt
rabbit raccoon radio radish raft rail rain rainbow raven recipe ribbon rice riddle ring river road robe robin rocket roof room root
rope rose ruler saddle sail salad salmon salt sand sandal sauce saw scale scarf school science scissors screen screw sea seal season
seat seed shadow shark sheep shelf shell ship shirt shoe shop shore shoulder shovel shower signal silk sink sister skate sky sleeve
slipper smoke snail snake snow soap sock sofa soil song soup south spade spark sparrow spice spider spoon spring squirrel stable stage
stair stamp star statue stem stone store storm story stove straw stream street string sugar suit summer sun supper swan sweater sword
table tailor tape tea teacher tent theater thread throne thumb thunder ticket tiger tile timber toast tomato tongue tool tooth towel
tower town toy track tractor train tray treasure tree trumpet trunk tulip tunnel turkey turtle umbrella uncle valley van vase velvet
village vine violin visitor voice volcano wagon waiter wall wallet walnut walrus water wave wax weather week whale wheat wheel whistle
willow wind window wing winter wire wolf wood wool world worm wrist yard year yogurt zebra zipper";

/// Verbs.
pub const VERBS: &str = "
accept admire advise agree allow announce appear argue arrive ask attend avoid bake balance become begin behave believe bend blame
bless blow boil borrow bounce bow breathe bring build burn bury buy call carry catch cause celebrate change chase cheer chew choose
clap climb collect come compare complain connect consider continue cough count crawl create cross cry cure cut dare decide deliver
depend describe deserve destroy dig disagree discover divide drag drift drink drive drop earn eat encourage enjoy enter escape examine
expect explain explore fail fall feed feel fetch fight fill find finish fix float fly fold follow forget forgive freeze gather give
glow go grab greet grow guess happen hate heal hear help hesitate hide hold hope hug hunt hurry ignore imagine improve include invent
invite join jump keep kick kneel knock know laugh learn leave lend lift listen live look lose love make measure meet melt mend move
obey observe offer order owe pack pause pay perform pick plan play polish pour pray prefer prepare pretend prevent produce promise
protect prove pull push reach read receive recognize refuse remain remember remind remove repair repeat replace reply rescue return
ride rise roll rub run rush save say scatter scream search see sell send separate serve settle shake share shout show shrink shut sing
sit sleep slide smell smile solve speak spell spend spill spin spread squeeze stand stare start stay steal stretch succeed suggest
supply support suppose surprise surround swallow swim swing take talk tap taste teach tear tell thank think throw tie touch travel
trust try turn understand unite untie vanish wait wake walk wander want warn wash waste weave weep weigh whisper win wink wish wonder
work worry wrap write yawn yell";
