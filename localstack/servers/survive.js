// Loaded into dynalite before it starts. Dynalite throws when a client goes away in the middle of a
// request, and so would end; every other fault that nobody caught still ends it.
'use strict'

process.on('uncaughtException', function (fault) {
  if (fault && fault.code === 'ECONNRESET' && fault.message === 'aborted') {
    console.error('a client went away in the middle of a request')
    return
  }
  console.error(fault)
  process.exit(1)
})
