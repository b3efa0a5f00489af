// Package blockcache reads ranges of immutable objects through memory.
//
//	Read(object, range) ─┬─ kept block or piece ──────────────> copy
//	                     └─ miss ─ flight, one a block ─┬─ run of neighbouring blocks, one fetch
//	                               (joined by all who   └─ piece: a small range alone
//	                                want it meanwhile)
//
// What comes in stays for a while whatever else is kept: it has been prepared for somebody, or others read it
// right behind. Then it is offered to a cache that admits what is asked for more often than what would have to go. So a
// reader that goes through everything once pushes nothing out.
//
// An object is read in blocks, aligned to their size. Of a block of which little is wanted, and nothing was wanted
// lately, that piece alone is fetched. Where half of what one fetch can bring is there, a miss brings the rest of it.
// Because objects never change and their names are never used again, nothing that is kept can be wrong.
//
// What holds:
//
//  1. Of a block, or of a piece, one fetch is under way however many ask for it. It goes on while one of them waits.
//  2. What failed is not kept, and neither is what lies past an object's end.
//  3. A block's memory is used again only when the cache has let go of it and nobody copies from it.
//  4. Blocks that are kept take at most the bytes configured.
//
// Nothing runs while nobody reads: goroutines live as long as the fetches that somebody waits for.
package blockcache
