package filestore

// Translate lets tests see what an error of the file system becomes.
var Translate = translate
